"""What goes wrong while memory is copied in rounds: agents killed and links cut in every round, programs that end, become
another or have children, a destination that runs out of memory. Afterwards exactly one copy runs and nothing is left."""
import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from harness import DONE, FAILED, NETWORK, PRESET, UNSUPPORTED, differences, picture, wait_until
from test_faults import check_exactly_one, sample

pytestmark = pytest.mark.skipif(PRESET == "release", reason="release build: has no fault points")

COUNT = 3  # rounds of the running program
ROUNDS = ("--downtime-limit", "1", "--max-rounds", str(COUNT), "--force")
# The points of each agent that are passed in every round; in the last one, of the frozen tree, too if `last`.
POINTS = {
    "a": [("round:scanned", True), ("round:begin", False), ("round:sent", True), ("round:answered", False)],
    "b": [("round:layout", True), ("round:open", True), ("round:written", True)],
}


def points(side):
    """Every point of every round, in their order but for those that are passed once."""
    passed = [f"{name}#{k}" for k in range(1, COUNT + 2) for name, last in POINTS[side] if last or k <= COUNT]
    return (["round:tracked"] if side == "a" else []) + passed + (["freeze"] if side == "a" else [])


def start(pair):
    return pair.victim("oracle", "--file", "{dir}/file", "--writers", "3", "--mb", "1", "--pages-per-second", "1000")


def one_case(pair, side, fault):
    victim = start(pair)
    environment = {"GODWIT_FAULT": fault}
    pair.serve(pair.b, environment=environment if side == "b" else None)
    outcome = pair.send(victim.pid, pair.a, *ROUNDS, mode="pre-copy", environment=environment if side == "a" else None, timeout=90)
    what = f"{fault} in the agent of host {side} (exit code {outcome.code})"
    try:
        assert outcome.code != DONE, "it made no difference"
        # It was before GO: whoever knows it says so, and nothing is uncertain.
        assert outcome.code == 137 or outcome.code in (FAILED, NETWORK), outcome.stderr
        if outcome.code != 137 and not (side == "a" and fault.startswith("cut")):  # our own doing has no hint
            outcome.says("hint:")
        check_exactly_one(pair, victim, outcome, what)
        assert victim.host is pair.a
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


def sweep(pair, side, faults):
    failures = []
    for fault in faults:
        try:
            one_case(pair, side, fault)
        except AssertionError as error:
            failures.append(str(error)[:3000])
            pair.reset()
        assert len(failures) < 3, "\n\n".join(failures)
    assert not failures, "\n\n".join(failures)


@pytest.mark.limit(120)
@pytest.mark.parametrize("verb", ["kill", "cut"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_agent_fails_in_some_rounds(pair, side, verb):
    sweep(pair, side, [f"{verb}@{point}" for point in sample(points(side), 5)])


@pytest.mark.slow
@pytest.mark.limit(900)
@pytest.mark.parametrize("verb", ["kill", "cut"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_agent_fails_at_every_point_of_every_round(pair, side, verb):
    sweep(pair, side, [f"{verb}@{point}" for point in points(side)])


@pytest.mark.parametrize("at, side", [("round:sent#2", "a"), ("round:written#1", "b")])
def test_nothing_of_the_tracker_stays_when_it_fails(pair, at, side):
    """The program is as it was, its mappings and descriptors included."""
    victim = pair.victim("memory", "--mb", "4", "--file", "{dir}/mapped")
    before = picture(pair.a, victim.pid)
    pair.serving(pair.b)
    with pair.held(victim.pid, pair.a, *ROUNDS, at=at, side=side) as held:
        pair.servers["b"].process.signal_inside(signal.SIGKILL)
        pair.servers["b"].process.wait(10)
    held.outcome.expect(NETWORK)
    pair.stop_serving(pair.b)  # the next one takes away what it left
    changed = differences(before, picture(pair.a, victim.pid), ignore=(r"fd [345]$", "status SigQ"))
    assert not changed, "\n".join(changed)
    victim.check_running()
    victim.finish()


# ---- the program does something drastic ----

# what tests/victims/exits.cc does -> the line it says
DRASTIC = {"exit": "exits", "crash": "crashes", "exec": "execs", "thread-exec": "execs", "leader": "leaves", "fork": "forks",
           "child": "has a child", "userfaultfd": "catches faults"}
MOMENTS = ["round:tracked", "round:scanned#1", "round:begin#2", "round:sent#1", "round:sent#3", "round:answered#2", "freeze"]


def act_at(pair, what, moment):
    """Migrates a program that does it at that moment; returns the program and the outcome."""
    victim = pair.victim("exits", "--then", what)
    pair.serving(pair.b)
    with pair.held(victim.pid, pair.a, *ROUNDS, at=moment) as held:
        pair.a.kill(victim.pid, signal.SIGUSR1)
        wait_until(lambda: DRASTIC[what] in victim.lines(), 10, lambda: f"it {DRASTIC[what]}: {victim.state()} {victim.output()}")
        if what in ("exit", "crash"):
            wait_until(lambda: not pair.a.alive(victim.pid), 10, "it ends")
        if what.endswith("exec"):
            wait_until(lambda: victim.lines().count("ready") == 2, 10, "it is another program")
    return victim, held.outcome


def ended(pair, victim, outcome):
    outcome.expect(FAILED).says(rf"\b{victim.pid}\b", "hint:")
    for host in pair.hosts:
        assert host.wait_gone(victim.pid), f"a copy of what has ended is on host {host.name}"


def carried_or_named(pair, victim, outcome, *codes, words=""):
    outcome.expect(DONE, *codes)
    if outcome.code == DONE:
        assert pair.a.wait_gone(victim.pid)
        victim.host = pair.b
    else:
        outcome.says(rf"\b{victim.pid}\b", words, "hint:")
    victim.check_running()
    victim.finish()


def check_action(pair, what, moment):
    victim, outcome = act_at(pair, what, moment)
    assert not any(word in outcome.stderr for word in ("terminate called", "Segmentation", "core dumped")), outcome.stderr
    if what in ("exit", "crash"):
        ended(pair, victim, outcome)
    elif what == "leader":
        # To /proc it is a zombie from then on, though its other threads run.
        outcome.expect(DONE, FAILED, UNSUPPORTED)
        if outcome.code != DONE:
            outcome.says("first thread", rf"\b{victim.pid}\b", "hint:")
        assert not any(line.startswith("FAIL") for line in victim.lines()), victim.output()
    elif what == "fork":
        carried_or_named(pair, victim, outcome)
    elif what == "leader":
        # Its first thread is a zombie for as long as the others live.
        outcome.expect(UNSUPPORTED).says(rf"\b{victim.pid}\b", "first thread", "hint:")
        before = victim.progress()
        wait_until(lambda: victim.progress() > before, 10, lambda: f"it goes on: {victim.state()} {victim.output()}")
        pair.a.kill(victim.pid, signal.SIGTERM)
        assert pair.a.wait_gone(victim.pid) and victim.lines()[-1] == "done", victim.output()
    elif what == "child":
        outcome.expect(UNSUPPORTED).says("child|more than one process", "hint:")
        victim.check_running()
        pair.a.kill(victim.pid)
    elif what == "userfaultfd":
        outcome.expect(UNSUPPORTED).says("userfaultfd", rf"\b{victim.pid}\b", "hint:")
        victim.check_running()
        victim.finish()
    else:
        carried_or_named(pair, victim, outcome, FAILED, UNSUPPORTED, words="another program")


SOME = [(what, MOMENTS[(3 * i + 1) % len(MOMENTS)]) for i, what in enumerate(DRASTIC)]
SOME += [("exit", "round:begin#2"), ("crash", "freeze"), ("exec", "round:answered#2")]


@pytest.mark.parametrize("what, moment", SOME)
def test_program_acts_in_a_round(pair, what, moment):
    check_action(pair, what, moment)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("what", DRASTIC)
def test_program_acts_at_every_moment(pair, what, moment):
    check_action(pair, what, moment)


def test_program_is_killed_in_a_round(pair):
    victim = start(pair)
    pair.serving(pair.b)
    with pair.held(victim.pid, pair.a, *ROUNDS, at="round:sent#2") as held:
        pair.a.kill(victim.pid)
        assert pair.a.wait_gone(victim.pid)
    ended(pair, victim, held.outcome)


def test_second_migration_of_the_same_program_is_refused(pair):
    """While rounds go on the tree is not stopped, and a second tracker would take the first one's marks."""
    victim = start(pair)
    pair.serving(pair.b)
    with pair.held(victim.pid, pair.a, *ROUNDS, at="round:sent#1") as held:
        pair.send(victim.pid, pair.a, *ROUNDS, mode="pre-copy").expect(FAILED, UNSUPPORTED).says(rf"\b{victim.pid}\b", "hint:")
        victim.check_running()
    held.outcome.expect(DONE)
    assert pair.a.wait_gone(victim.pid)
    victim.host = pair.b
    victim.check_running()
    victim.finish()


# ---- a destination that is short of memory ----

@contextlib.contextmanager
def memory_cgroup(megabytes):
    """A cgroup (v1) that holds so much at most."""
    root = Path("/sys/fs/cgroup/memory")
    if not (root / "memory.limit_in_bytes").exists():
        pytest.skip("kernel: no memory controller of cgroup v1")
    group = root / f"godwit-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(megabytes << 20))
        yield group
    finally:
        wait_until(lambda: _removed(group), 20, "the memory cgroup can be removed")


def _removed(group):
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


@pytest.mark.limit(120)
@pytest.mark.parametrize("mode", ["stop", "pre-copy"])
def test_destination_out_of_memory(pair, mode):
    """The kernel kills whom it likes there: agent or skeleton. The program runs on."""
    victim = pair.victim("reserve", "--gib", "2", "--touch-mb", "300")
    with memory_cgroup(100) as group:
        server = pair.serve(pair.b)
        (group / "cgroup.procs").write_text(str(server.process.outer_pid))
        outcome = pair.send(victim.pid, pair.a, *(ROUNDS if mode == "pre-copy" else ()), mode=mode).expect(FAILED, NETWORK)
        outcome.says("hint:")
        victim.check_running()
        pair.stop_serving(pair.b)
        wait_until(lambda: not pair.b.pids(), 20, lambda: f"left on host b: {pair.b.processes()}")
    for host in pair.hosts:
        pair.recover(host).expect(DONE)
    pair.migrate(victim, mode=mode)
    victim.finish()


@pytest.mark.limit(120)
def test_destination_whose_agent_may_not_map_more(pair):
    """RLIMIT_AS: system calls fail with ENOMEM where otherwise somebody is killed."""
    victim = pair.victim("reserve", "--gib", "2", "--touch-mb", "16")
    server = pair.serve(pair.b)
    pair.b.output(["/usr/bin/prlimit", "--pid", str(server.process.host_pid), "--as=900000000"])
    outcome = pair.send(victim.pid, pair.a, *ROUNDS, mode="pre-copy").expect(FAILED, UNSUPPORTED, NETWORK)
    outcome.says(r"memory|ENOMEM", "hint:")
    victim.check_running()
    assert server.process.poll() is None, server.text()
    pair.serve(pair.b)
    pair.migrate(victim, mode="pre-copy")
    victim.finish()


def test_more_memory_than_the_destination_has_is_refused(pair):
    """Asked of the plan, before anything is touched; the number is the destination's own."""
    available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) << 10
    fake = pair.shared / "meminfo"
    fake.write_text(re.sub(r"(MemAvailable|MemFree|SwapFree):\s+\d+", r"\1: 65536", Path("/proc/meminfo").read_text()))
    assert available > 1 << 30
    victim = pair.victim("reserve", "--gib", "2", "--touch-mb", "200")
    pair.stop_serving(pair.b)
    pair.b.output(["mount", "--bind", str(fake), "/proc/meminfo"])
    try:
        pair.serve(pair.b)
        pair.send(victim.pid, pair.a, mode="pre-copy").expect(UNSUPPORTED).says("memory", "hint:")
        victim.check_running()
    finally:
        pair.b.output(["umount", "/proc/meminfo"])
        pair.stop_serving(pair.b)
    victim.finish()
