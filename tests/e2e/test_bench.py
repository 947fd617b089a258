"""What ./bench rests on: a victim that notices what is lost, figures that are what they say."""
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import BIN, REPO, wait_until

sys.path.insert(0, str(REPO / "tools/bench"))
import figures  # noqa: E402
import ledger  # noqa: E402
from moving import Toucher  # noqa: E402

VICTIM = BIN / "bench_victim"


@contextlib.contextmanager
def victim(*options):
    """bench_victim on this machine: (process, its log)."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = subprocess.Popen([VICTIM, "--log", log, *map(str, options)])
        try:
            wait_until(lambda: log.exists() and "ready" in log.read_text(), 20, "the victim is ready")
            yield process, log
        finally:
            process.kill()
            process.wait(10)


def end(process, log):
    process.terminate()
    process.wait(30)
    return log.read_text().splitlines()[-1]


def memory_of(process, mebibytes):
    """Where its memory begins: the mapping of that size."""
    for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
        first, last = (int(text, 16) for text in line.split()[0].split("-"))
        if last - first == mebibytes << 20:
            return first
    raise AssertionError("the victim has no mapping of that size")


def overwrite(process, address, data):
    with open(f"/proc/{process.pid}/mem", "r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), data, address) == len(data)


def test_bench_victim_is_content_when_nothing_happens():
    options = ("--memory-mib", 8, "--dirty-pages", 100, "--dirty-per-second", 10000, "--threads", 3, "--mappings", 9, "--descriptors", 5)
    with victim(*options) as (process, log):
        wait_until(lambda: "beat" in log.read_text(), 20, "the victim lives")
        assert end(process, log) == "done"


def test_bench_victim_notices_a_page_of_zeros():
    with victim("--memory-mib", 8) as (process, log):
        overwrite(process, memory_of(process, 8) + 777 * 4096, bytes(4096))
        assert end(process, log).startswith("FAIL page 777")


def test_bench_victim_notices_a_stale_page():
    # At one page written per second all pages hold 0 or 1 meanwhile.
    with victim("--memory-mib", 8, "--dirty-pages", 100, "--dirty-per-second", 1) as (process, log):
        overwrite(process, memory_of(process, 8) + 20 * 90 * 4096, (2**64 - 1).to_bytes(8, "little"))
        assert end(process, log).startswith("FAIL page 90 of the dirty set")


def test_slope_is_that_of_the_line():
    assert figures.slope([(0, 1.0), (1, 3.0), (2, 5.0)]) == (2.0, 1.0)
    assert figures.slope([(1, 2.0)])[0] != figures.slope([(1, 2.0)])[0]  # not a number


def test_missed_goal_is_printed_as_such():
    out = io.StringIO()
    findings = figures.Findings(out)
    findings.begin("some", "thing")
    findings.goal("speed", 94.9, 95, "%", at_most=False)
    findings.goal("cost", 0.5, 0.6, "ms")
    findings.summary()
    assert "GOAL MISSED: speed" in out.getvalue()
    assert "goal met: cost" in out.getvalue()
    assert "1 of 2 goals met" in out.getvalue()


def test_sample_counts_for_the_system_call_it_was_in():
    text = """godwit 12
\tffff copy_page ([kernel.kallsyms])
\tffff __x64_sys_ioctl ([kernel.kallsyms])
\tffff x64_sys_call ([kernel.kallsyms])
\t7f00 ioctl (/usr/lib/libc.so.6)

two words 13
\t7f00 EVP_EncryptUpdate (/usr/lib/libcrypto.so.3)

godwit 12
\tffff clear_page ([kernel.kallsyms])
\tffff asm_exc_page_fault ([kernel.kallsyms])
\t7f00 memcpy (/usr/lib/libc.so.6)
"""
    found = [(pid, ledger._kind(frames)) for pid, frames in ledger._samples(text)]
    assert found == [(12, "ioctl"), (13, "TLS (libcrypto)"), (12, "page faults")]


def test_toucher_goes_over_every_page_of_its_keys():
    places = [Toucher([], 0, 10, 2, 1).place(number) for number in range(8)]
    assert {key for key, _, _ in places} == {"static:10", "static:11"}
    assert sorted({offset // 4096 for _, offset, _ in places}) == [0, 1, 2, 3]
    assert len({place[:2] for place in places}) == 8


def test_bench_measures_one_section_alone(tmp_path):
    found = tmp_path / "found.json"
    done = subprocess.run([sys.executable, REPO / "tools/bench/main.py", "--quick", "--json", found, "batch"], capture_output=True, text=True,
                          timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    sections = json.loads(found.read_text())["sections"]
    assert list(sections) == ["batch"]
    assert len(sections["batch"]["raw"]["microseconds"]["batch 3000"]) == 10
    assert "injections per call" in done.stdout
