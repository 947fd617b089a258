"""Every victim moves to the other host and back, and is unharmed. One row is one case."""
from dataclasses import dataclass

import pytest

from harness import DONE, UNSUPPORTED, differences, picture


@dataclass(frozen=True)
class Case:
    name: str
    victim: str
    arguments: tuple = ()
    options: tuple = ()
    expect: int = DONE
    smoke: bool = False
    ignore: tuple = ()   # names of what may differ in /proc (regular expressions, see harness.picture)


CASES = [
    Case("sleep", "sleep", smoke=True),
    Case("threads", "threads", ("--threads", "8"), smoke=True),
    Case("threads-200", "threads", ("--threads", "200")),
    Case("signals", "signals", smoke=True),
    Case("clocks", "clocks"),
    Case("memory", "memory", ("--mb", "8", "--file", "{dir}/mapped"), smoke=True),
    Case("memory-64", "memory", ("--mb", "64", "--move", "--file", "{dir}/mapped")),
    Case("shared", "shared", smoke=True),
    Case("shared-sizes", "shared", ("--size",)),
    Case("shared-sealed", "shared", ("--seal", "--readers"), smoke=True),
    Case("shared-file", "shared", ("--file", "/dev/shm/region"), smoke=True),
    Case("files", "files", ("--dir", "{dir}"), smoke=True),
    Case("pipes", "pipes"),
    Case("events", "events"),
    Case("listen", "listen", ("--port", "7001"), smoke=True),
    Case("listen-v6", "listen", ("--port", "7002", "--v6")),
    Case("credentials", "credentials"),
    Case("credentials-capabilities", "credentials", ("--keep-caps", "--no-new-privs")),
    Case("attributes", "attributes"),
    Case("attributes-hidden", "attributes", ("--death-signal", "--not-dumpable")),
    Case("rseq", "rseq"),
]
# Carried or refused as a whole: both are right, harm is not.
EITHER = [
    Case("posix-timers", "clocks", ("--posix",)),
    Case("interval-timer", "clocks", ("--itimer",)),
    Case("epoll-nested", "events", ("--nested",)),
    Case("epoll-stale", "events", ("--stale",)),
]


def rows(cases):
    return [pytest.param(c, id=c.name, marks=[pytest.mark.smoke] if c.smoke else []) for c in cases]


modes = pytest.mark.parametrize("mode", ["stop", "pre-copy"])


def there_and_back(pair, case, times, mode):
    victim = pair.victim(case.victim, *case.arguments)
    # The victims are small: the limit is there to be met however busy the machine is.
    limit = ("--downtime-limit", "60000") if mode != "stop" else ()
    for _ in range(times):
        for _ in ("there", "back"):
            pair.migrate(victim, *limit, *case.options, mode=mode)
    victim.finish()


@modes
@pytest.mark.parametrize("case", rows(CASES))
def test_victim_moves_there_and_back(pair, case, mode):
    there_and_back(pair, case, 1, mode)


@modes
@pytest.mark.parametrize("case", rows(EITHER))
def test_victim_is_carried_whole_or_refused_whole(pair, case, mode):
    victim = pair.victim(case.victim, *case.arguments)
    pair.serving(pair.b)
    outcome = pair.send(victim.pid, pair.a, mode=mode).expect(DONE, UNSUPPORTED)
    if outcome.code == DONE:
        victim.host = pair.b
    victim.check_running()
    victim.finish()


@pytest.mark.slow
@pytest.mark.limit(900)
@modes
@pytest.mark.parametrize("case", rows(CASES))
def test_victim_moves_fifty_times(pair, case, mode):
    there_and_back(pair, case, 25, mode)


# ---- what a migration must not change --------------------------------------------------------------------------

QUIET = [
    Case("sleep", "sleep"),
    Case("signals", "signals"),
    Case("files", "files", ("--dir", "{dir}"), ignore=(r"fd ",)),  # offsets move on while it works
    Case("attributes", "attributes"),
    Case("credentials", "credentials"),
    Case("threads", "threads"),
]


@pytest.mark.smoke
@modes
@pytest.mark.parametrize("case", rows(QUIET))
def test_proc_shows_the_same_process_after_the_move(pair, case, mode):
    victim = pair.victim(case.victim, *case.arguments)
    before = picture(pair.a, victim.pid)
    pair.migrate(victim, mode=mode)
    after = picture(pair.b, victim.pid)
    # The log's offset grows; SigQ counts the signals of the user on that host.
    changed = differences(before, after, ignore=(r"fd [345]$", "status SigQ", *case.ignore))
    assert not changed, "\n".join(changed)
    victim.finish()


@pytest.mark.smoke
def test_report_adds_up(pair):
    victim = pair.victim("memory", "--mb", "16", "--file", "{dir}/mapped")
    report = pair.migrate(victim).report
    for name in ("migration_id", "mode", "rounds", "bytes_sent", "total_ms", "downtime_ms", "downtime_phases_ms", "predicted_downtime_ms"):
        assert name in report, f"{name} is missing in {report}"
    assert report["mode"] == "stop" and report["bytes_sent"] > 16 << 20
    assert 0 < report["downtime_ms"] <= report["total_ms"] < 60000
    assert len(report["downtime_phases_ms"]) >= 3
    assert abs(sum(report["downtime_phases_ms"].values()) - report["downtime_ms"]) <= 0.1 * report["downtime_ms"] + 2
    victim.finish()


def test_established_connections_are_closed_when_asked(pair):
    victim = pair.victim("listen", "--port", "7003", "--keep")
    client = pair.b.connect(7003, pair.a.address)
    client.sendall(b"hello\n")
    assert client.recv(64) == b"%d\n" % victim.pid
    pair.migrate(victim, "--tcp-close")
    client.settimeout(10)
    try:
        assert client.recv(64) == b"", "the old connection answered"
    except ConnectionError:
        pass  # a reset, as promised
    client.close()
    from harness import wait_until
    wait_until(lambda: any(line.startswith("lost") for line in victim.lines()), 10, "the program is told")
    again = pair.a.connect(7003, pair.b.address)
    again.sendall(b"hello\n")
    assert again.recv(64) == b"%d\n" % victim.pid
    again.close()
    victim.finish()


def test_server_accepts_at_its_new_host(pair):
    victim = pair.victim("listen", "--port", "7004")
    pair.migrate(victim)
    for host in (pair.a, pair.b):
        with host.connect(7004, pair.b.address) as client:
            client.sendall(b"hello\n")
            assert client.recv(64) == b"%d\n" % victim.pid
    with pytest.raises(OSError):
        pair.b.connect(7004, pair.a.address)
    victim.finish()
