"""Agents are killed and links cut at every numbered and named point; in the end exactly one copy runs.

A first run records the points of both agents (GODWIT_FAULT_TRACE). Each case then lets one agent die, or lose its
link, at one of them. After that the operator does what the manual says: starts `serve` again and runs `godwit
recover` on both hosts. Nothing may be left behind. The short tier takes a sample, --slow takes all.
"""
import time
from pathlib import Path

import pytest

from harness import DONE, PRESET, UNCERTAIN, wait_until

pytestmark = pytest.mark.skipif(PRESET == "release", reason="release build: has no fault points")

SAMPLE = 12      # points of each kind in the short tier
SIGKILLED = 137  # how the runner of a host says that its program was killed


# Rounds of the running program, so many wherever it runs: the limit is out of reach, and the switch is made all the same.
OPTIONS = {"stop": (), "pre-copy": ("--downtime-limit", "1", "--max-rounds", "2", "--force")}
modes = pytest.mark.parametrize("mode", OPTIONS)


def traced_points(pair, mode):
    """[(number, name)] of the source's and of the destination's agent, from one migration that works."""
    traces = {side: pair.shared / f"trace-{side}-{next(pair.numbers)}" for side in "ab"}
    pair.serve(pair.b, environment={"GODWIT_FAULT_TRACE": str(traces["b"])})
    victim = pair.victim("signals")
    pair.migrate(victim, *OPTIONS[mode], mode=mode, environment={"GODWIT_FAULT_TRACE": str(traces["a"])})
    victim.finish()
    pair.stop_serving(pair.b)
    points = {}
    for side, path in traces.items():
        # A helper process of the agent counts for itself: its numbers are there already.
        lines = (line.split(" ", 1) for line in path.read_text().splitlines())
        points[side] = sorted({int(number): name for number, name in lines}.items())
        points[side + " names"] = list(dict.fromkeys(line.split(" ", 1)[1] for line in path.read_text().splitlines()))
        assert points[side], f"no fault points in the agent of host {side}"
    return points


@pytest.fixture(scope="module")
def points(hosts_with_keys):
    """Of each mode."""
    return {mode: traced_points(hosts_with_keys, mode) for mode in OPTIONS}


def few(items, mode):
    """The sample of the short tier: what the modes have in common needs no second one as large."""
    return sample(items, SAMPLE if mode == "stop" else SAMPLE // 2)


def sample(items, count=SAMPLE):
    """So many of them spread evenly, with the first and the last."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def runs(host, pid):
    """The copy on this host is there and neither stopped nor frozen."""
    outer = host.outer(pid)
    try:
        group = next(l for l in Path(f"/proc/{outer}/cgroup").read_text().splitlines() if l.startswith("0::"))[3:]
        hierarchy = str(host.cgroup)[:-len(host.cgroup.name)].rstrip("/")
        events = Path(f"{hierarchy}{group}/cgroup.events").read_text()
        # A skeleton has the PID too and may be running its agent's executor: it is traced, what runs by itself is not.
        # Both from one reading: one that dies in between would look like neither.
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{outer}/status").read_text().splitlines() if ":\t" in line)
        return status["State"][0] not in "TtZX" and status["TracerPid"] == "0" and "frozen 1" not in events
    except (OSError, StopIteration):
        return False


def assert_one_runs(pair, victim):
    """No two copies run. A skeleton that its dead agent's end is killing is seen for a moment, untraced and still alive."""
    end = time.monotonic() + 1
    while len(running := [host for host in pair.hosts if runs(host, victim.pid)]) > 1:
        assert time.monotonic() < end, f"two copies run: {[h.name for h in running]}"
        time.sleep(0.02)


def settle(pair, victim):
    """What an operator does after a crash; returns the host where the one copy runs."""
    if pair.servers.get("b") is None or pair.servers["b"].process.poll() is not None:
        pair.serve(pair.b)
    end = time.monotonic() + 40
    told = []
    while True:
        assert_one_runs(pair, victim)
        codes = [pair.recover(host).code for host in pair.hosts]
        told.append(codes)
        copies = [host for host in pair.hosts if host.outer(victim.pid)]
        running = [host for host in copies if runs(host, victim.pid)]
        if codes == [0, 0] and len(copies) == 1 and len(running) == 1:
            return running[0]
        assert time.monotonic() < end, f"not settled; recover said {told[-5:]}; copies on {[h.name for h in copies]}, running {[h.name for h in running]}"
        time.sleep(0.1)


def check_exactly_one(pair, victim, outcome, what):
    if outcome.code == DONE:
        assert not pair.a.alive(victim.pid), f"{what}: exit code 0, and the copy at the source is there"
    elif outcome.code not in (UNCERTAIN, SIGKILLED):
        # Exit codes 1 to 4 promise that the program runs on at the source, without any further command.
        wait_until(lambda: runs(pair.a, victim.pid), 10, f"{what}: exit code {outcome.code}, but it does not run at the source")
    victim.host = settle(pair, victim)
    victim.check_running()
    victim.finish()
    pair.victims.remove(victim)
    pair.check_clean()


def one_case(pair, side, fault, mode):
    """Migrates with one fault in one agent."""
    victim = pair.victim("signals")
    environment = {"GODWIT_FAULT": fault}
    pair.serve(pair.b, environment=environment if side == "b" else None)
    outcome = pair.send(victim.pid, pair.a, *OPTIONS[mode], mode=mode, environment=environment if side == "a" else None, timeout=90)
    try:
        check_exactly_one(pair, victim, outcome, f"{fault} in the agent of host {side}")
    except AssertionError as error:
        raise AssertionError(f"{fault} in the agent of host {side} (exit code {outcome.code}): {error}") from error


def sweep(pair, side, faults, mode):
    """Runs many cases and tells of all that failed, not only of the first."""
    failures = []
    for fault in faults:
        try:
            one_case(pair, side, fault, mode)
        except AssertionError as error:
            failures.append(str(error)[:3000])
            pair.reset()
        assert len(failures) < 3, "\n\n".join(failures)
    print(f"{len(faults)} faults in the agent of host {side}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.limit(300)
@modes
@pytest.mark.parametrize("side", ["a", "b"])
def test_agent_killed_at_numbered_points(pair, points, side, mode):
    sweep(pair, side, [f"kill@{number}" for number, _ in few(points[mode][side], mode)], mode)


@pytest.mark.limit(300)
@modes
@pytest.mark.parametrize("verb", ["kill", "cut"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_agent_fails_at_named_points(pair, points, side, verb, mode):
    sweep(pair, side, [f"{verb}@{name}" for name in few(points[mode][side + " names"], mode)], mode)


@pytest.mark.slow
@pytest.mark.limit(7200)
@modes
@pytest.mark.parametrize("side", ["a", "b"])
def test_agent_killed_at_every_numbered_point(pair, points, side, mode):
    sweep(pair, side, [f"kill@{number}" for number, _ in points[mode][side]], mode)


@pytest.mark.slow
@pytest.mark.limit(3600)
@modes
@pytest.mark.parametrize("verb", ["kill", "cut"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_agent_fails_at_every_named_point(pair, points, side, verb, mode):
    sweep(pair, side, [f"{verb}@{name}" for name in points[mode][side + " names"]], mode)


@pytest.mark.limit(120)
def test_recover_with_nothing_to_do(pair):
    for host in pair.hosts:
        pair.recover(host).expect(DONE)


@pytest.mark.slow
@pytest.mark.limit(1800)
@modes
def test_agent_killed_at_random_moments(pair, mode):
    """What no fault point stands for: SIGKILL by the clock."""
    import random
    import signal
    import subprocess
    from harness import GODWIT, Outcome
    for round_number in range(100):
        victim = pair.victim("threads", "--threads", "6")
        server = pair.serving(pair.b)
        process = pair.a.popen([GODWIT, *pair.migrate_arguments(victim.pid, pair.a, *OPTIONS[mode], mode=mode)],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0, 0.15 if mode == "stop" else 0.25))
        (server.process if round_number % 2 else process).signal_inside(signal.SIGKILL)
        process.wait(60)
        check_exactly_one(pair, victim, Outcome(process.returncode, "", ""), f"random kill {round_number}")
