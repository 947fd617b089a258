"""Where the CPU time of the two agents goes: samples of perf, told apart by the system call that they were in.

Only where perf is installed (linux-perf) and may sample the whole machine; it is not worth a package of its own.
"""
import collections
import contextlib
import os
import re
import select
import shutil
import signal
import subprocess

from lab import GIB

FREQUENCY = 999
# What a sample is in, when it is in no system call: by the object that the innermost frame lies in.
OBJECTS = (("libcrypto", "TLS (libcrypto)"), ("libssl", "TLS (libssl)"), ("libxxhash", "checksums (libxxhash)"), ("liblz4", "compression (liblz4)"),
           ("libc.", "libc"), ("godwit", "godwit itself"))
_CALL = re.compile(r"\b(?:_*(?:x64_|ia32_)?|k)sys_(?!call\b)(\w+)")


@contextlib.contextmanager
def _recording(path):
    """Samples are taken while this lasts: begins once perf has said that it does."""
    orders, acknowledged = os.pipe(), os.pipe()
    command = ["perf", "record", "-q", "-a", "-g", "-F", str(FREQUENCY), "-D", "-1", f"--control=fd:{orders[0]},{acknowledged[1]}", "-o", str(path)]
    recorder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(orders[0], acknowledged[1]))
    try:
        os.write(orders[1], b"enable\n")
        select.select([acknowledged[0]], [], [], 20)
        yield
    finally:
        recorder.send_signal(signal.SIGINT)
        try:
            recorder.wait(30)
        except subprocess.TimeoutExpired:
            recorder.kill()
            recorder.wait(10)
        for fd in (*orders, *acknowledged):
            os.close(fd)


def _kind(frames):
    """What one sample was doing; `frames` innermost first."""
    for frame in frames:
        call = _CALL.search(frame)
        if call:
            return call.group(1)
    if any("exc_page_fault" in frame for frame in frames):
        return "page faults"
    if frames and "[kernel" in frames[0]:
        return "interrupts, scheduling"
    return next((words for name, words in OBJECTS if frames and name in frames[0]), "other")


def _samples(text):
    """(process id, frames) of each sample of `perf script`: a line "NAME PID", frames, an empty line."""
    for block in text.split("\n\n"):
        lines = block.strip("\n").splitlines()
        if lines and lines[0].split()[-1].isdigit():
            yield int(lines[0].split()[-1]), lines[1:]


def available():
    return shutil.which("perf") is not None


def take(lab, moving, tls, streams=1):
    """{"source" and "destination": {kind: CPU seconds per GiB of memory}} of one migration; None where perf cannot tell."""
    path = lab.shared / "perf.data"
    with _recording(path):
        run = lab.migrate(moving, tls=tls, streams=streams)
    script = subprocess.run(["perf", "script", "-i", path, "-F", "comm,pid,ip,sym,dso"], capture_output=True, text=True, errors="replace", timeout=120)
    gibibytes = sum(r["pages"] for r in run.report["rounds"]) * 4096 / GIB
    found = {"source": collections.Counter(), "destination": collections.Counter()}
    sides = {run.source.pid: "source", run.destination.pid: "destination"}
    for pid, frames in _samples(script.stdout):
        if pid in sides:
            found[sides[pid]][_kind(frames)] += 1 / FREQUENCY / gibibytes
    path.unlink(missing_ok=True)
    return found if found["source"] and found["destination"] else None


def rows(found, most=14):
    """Lines of a table: kind, source, destination; the largest first, what is left together."""
    total = found["source"] + found["destination"]
    kinds = [kind for kind, _ in total.most_common()]
    lines = [[kind, found["source"][kind], found["destination"][kind]] for kind in kinds[:most]]
    if kinds[most:]:
        lines.append(["the rest", *(sum(found[side][kind] for kind in kinds[most:]) for side in ("source", "destination"))])
    return [*lines, ["all", *(sum(found[side].values()) for side in ("source", "destination"))]]
