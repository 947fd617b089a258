"""What single parts cost, measured inside one process: the tracker's scan, system calls in a target, tracked writers."""
import json
import subprocess

from figures import BenchError, median, percent, ratio
from lab import GODWIT_BENCH


def measure(command, *options, timeout=300):
    done = subprocess.run([GODWIT_BENCH, command, *map(str, options)], capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise BenchError(f"godwit_bench {command}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def scan(bench):
    """The tracker beside the ioctl it is made of."""
    found = measure("scan", "--repeat", 3 if bench.quick else 9)
    bench.findings.raw("ms per GiB", found)
    rows = []
    for dirt in ("idle", "1 %", "100 %"):
        tracker, ioctl = median(found[f"tracker {dirt}"]), median(found[f"ioctl {dirt}"])
        rows.append([dirt, tracker, ioctl, ratio(tracker, ioctl), min(found[f"tracker {dirt}"]), max(found[f"tracker {dirt}"])])
    reserved, idle = median(found["tracker idle, 16 GiB reserved"]), median(found["tracker idle"])
    rows.append(["idle, 16 GiB reserved", reserved, median(found["ioctl idle"]), ratio(reserved, idle), min(found["tracker idle, 16 GiB reserved"]),
                 max(found["tracker idle, 16 GiB reserved"])])
    bench.findings.table("Finding out what was written, ms per GiB of 4 KiB pages (medians)",
                         ["written since the last scan", "tracker", "bare ioctl", "ratio", "least", "most"], rows,
                         "tracker: refresh() and collect(); ioctl: PAGEMAP_SCAN with the same flags, answers thrown away; the last ratio is to idle without the reservation")
    reading = median(found["pagemap read"])
    bench.findings.say(f"start of tracking: {median(found['tracker start']):.2f} ms per GiB; reading plain pagemap instead of a scan: {reading:.2f} ms per GiB, "
                       f"{ratio(reading, idle):.1f} times an idle scan; page tables grown by the reservation: {median(found['page tables grown, KiB']):.0f} KiB")
    bench.findings.goal("idle scan by the tracker", idle, 0.6, "ms per GiB")


def batch(bench):
    """System calls made in another process."""
    found = measure("batch", "--repeat", 10 if bench.quick else 40)
    bench.findings.raw("microseconds", found)
    native, injected = median(found["native, each"]), median(found["injection, each"])
    rows = []
    for size in (1, 100, 1000, 3000):
        whole = median(found[f"batch {size}"])
        rows.append([f"batch of {size}", whole, whole / size, ratio(whole / size, native), ratio(injected, whole / size)])
    rows.append(["PTRACE_SYSCALL injection", injected, injected, ratio(injected, native), 1.0])
    rows.append(["native loop", native, native, 1.0, ratio(injected, native)])
    bench.findings.table("getpid made in another process (medians)", ["", "µs", "µs per call", "times native", "injections per call"], rows)
    for what in ("seize and stop", "attach", "leave"):
        values = found[what]
        bench.findings.say(f"{what}: {median(values):.0f} µs ({min(values):.0f} to {max(values):.0f}), as long as {median(values) / injected:.1f} injections")


def tracked_writes(bench):
    """Writers under the tracker alone."""
    found = measure("slowdown", "--repeat", 2 if bench.quick else 6, "--window-ms", 500 if bench.quick else 1000)
    bench.findings.raw("writes per second", found)
    interval = median(found["interval ms"])
    rows = []
    for spread, words in (("4 MiB", "over 4 MiB"), ("all", "over 256 MiB")):
        alone = median(found[f"{spread} untracked"])
        rates = [ratio(median(found[f"{spread} {state}"]), alone) for state in ("between scans", "asked", "copied")]
        pages = median(found[f"{spread} pages per scan"])
        # With few pages the loss is smaller than what such rates differ by.
        lost = (1 - rates[1]) * interval * 1000 / pages if pages > 10000 else None
        rows.append([words, alone / 1e6, *map(percent, rates), pages, lost])
    bench.findings.table("Random writes of a process under the tracker, as a share of what it makes untracked",
                         ["", "untracked, M/s", "between scans", f"a scan each {interval:.0f} ms", "and pages read", "pages per scan", "µs lost per page"], rows)
