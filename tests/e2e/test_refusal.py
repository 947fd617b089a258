"""What is not carried is named before anything is touched, all of it at once, and the program runs on."""
import pytest

from harness import UNSUPPORTED, differences, picture

# kind of tests/victims/holds.cc -> what the user must be told, as a regular expression
KINDS = {
    "io_uring": "io_uring",
    "inotify": "inotify",
    "fanotify": "fanotify",
    "child": "child|more than one process",
    "zombie": "child|zombie|more than one process",
    "tcp": "TCP.*--tcp-close|--tcp-close",
    "udp": "UDP|datagram",
    "unix-listener": "unix",
    "netlink": "netlink",
    "packet": "packet",
    "raw": "raw",
    "half-pipe": "pipe|child",
    "half-socketpair": "unix|socket",
    "passed-descriptor": "descriptor|SCM_RIGHTS|unix",
    "pty": "terminal|tty|ptmx|pts",
    "fifo": "fifo|named pipe",
    "seccomp": "seccomp",
    "userfaultfd": "userfaultfd",
    "perf": "perf",
    "bpf": "bpf",
    "shm": "SysV|System V|shm",
    "memfd-outside": r"its memory is shared with pid \d+ fd 900",
    "memory-outside": r"its memory is shared with mapping .* of pid",
    "memfd-huge": "huge pages",
    "deleted-file": "deleted|unlinked|removed",
    "deleted-mapping": "deleted|unlinked|removed",
    "pidfd": "pidfd",
    "namespace-file": "namespace|nsfs|net:",
    "proc-file": "proc",
    "mount-namespace": "mount namespace|mnt",
    "mqueue": "mqueue|message queue",
    "flock": "lock",
    "posix-lock": "lock",
    "ofd-lock": "lock",
    "lease": "lease|lock",
    "dnotify": "dnotify|notif|SIGIO|F_NOTIFY",
    "async-owner": "O_ASYNC|SIGIO|F_SETOWN|owner|unix",
    "traced-child": "child|more than one process|ptrace|trace",
    "memfd-secret": "secretmem|memfd_secret|secret",
    "mount-handle": "fscontext|fsopen|mount|anon_inode",
    "vsock": "vsock|address family|family",
    "kmsg": "kmsg",
}
# More than one process changes what else is looked at, and a mount namespace hides the rest: not in the crowd.
ALONE = {"memfd-outside", "memory-outside", "child", "zombie", "half-pipe", "half-socketpair", "traced-child", "mount-namespace", "seccomp", "async-owner"}


def held(pair, *kinds):
    victim = pair.victim("holds", "--dir", "{dir}", "--hold", ",".join(kinds))
    cannot = [line for line in victim.lines() if line.startswith("cannot")]
    assert not cannot, f"the kernel here refuses to make some of them: {cannot}"
    return victim


def refused(pair, victim, *patterns, host=None):
    before = picture(pair.a, victim.pid)
    pair.serving(pair.b)
    pair.send(victim.pid, pair.a).expect(UNSUPPORTED).says(*patterns)
    changed = differences(before, picture(pair.a, victim.pid), ignore=(r"fd \d+$", "status SigQ"))
    assert not changed, "it was touched: " + "\n".join(changed)
    assert not pair.b.alive(victim.pid), "something runs at the destination"
    victim.check_running()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_refused_by_name(pair, kind):
    victim = held(pair, kind)
    refused(pair, victim, KINDS[kind])
    pair.a.kill(victim.pid)  # its children go with it


def test_all_kinds_are_named_at_once(pair):
    crowd = [kind for kind in KINDS if kind not in ALONE]
    victim = held(pair, *crowd)
    refused(pair, victim, *(KINDS[kind] for kind in crowd))


def test_check_names_the_same_as_migrate(pair):
    victim = held(pair, "inotify", "memfd-huge", "io_uring")
    pair.godwit(pair.a, "check", "--tree", victim.pid).expect(UNSUPPORTED).says("inotify", "memfd", "io_uring")
    victim.check_running()


def test_check_accepts_what_can_be_carried(pair):
    victim = pair.victim("events")
    pair.godwit(pair.a, "check", "--tree", victim.pid).expect(0)
    victim.check_running()


def test_every_problem_has_pid_descriptor_and_hint(pair):
    victim = held(pair, "inotify")
    pair.serving(pair.b)
    outcome = pair.send(victim.pid, pair.a).expect(UNSUPPORTED).says(rf"\b{victim.pid}\b", r"fd \d+|descriptor \d+")
    assert len([line for line in outcome.stderr.splitlines() if "inotify" in line]) == 1, outcome.stderr


def test_traced_program_is_refused(pair):
    victim = pair.victim("events")
    tracer = pair.a.popen(["/usr/bin/strace", "-qq", "-o", "/dev/null", "-p", str(victim.pid)])
    from harness import wait_until
    from pathlib import Path
    status = Path(f"/proc/{pair.a.outer(victim.pid)}/status")
    wait_until(lambda: "TracerPid:\t0" not in status.read_text(), 10, "strace has attached")
    pair.serving(pair.b)
    pair.send(victim.pid, pair.a).expect(UNSUPPORTED).says("trac")
    tracer.terminate()
    tracer.wait(10)
    victim.check_running()


def test_stopped_program_is_refused_or_moves_stopped(pair):
    import signal
    victim = pair.victim("events")
    pair.a.kill(victim.pid, signal.SIGSTOP)
    pair.serving(pair.b)
    outcome = pair.send(victim.pid, pair.a).expect(0, UNSUPPORTED)
    if outcome.code == 0:
        victim.host = pair.b
    victim.host.kill(victim.pid, signal.SIGCONT)
    victim.check_running()
    victim.finish()
