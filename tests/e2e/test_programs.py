"""Real programs move while they are used, and nobody loses anything but the connection."""
import hashlib
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from harness import DONE, wait_until
from localhosts.redis_load import WriteLoad, digest, fill, server_arguments, wait_for_server


class Program:
    """A program that was not made for tests; moves like a victim."""

    def __init__(self, pair, argv, log_name, environment=None):
        self.pair, self.host, self.name = pair, pair.a, log_name
        self.log = pair.shared / f"{log_name}.log"
        self.pid = pair.a.spawn_daemon(argv, log=self.log, env=environment)
        pair.victims.append(self)

    def move(self, *options, timeout=170, mode="stop"):
        target = self.pair.other(self.host)
        self.pair.serving(target)
        outcome = self.pair.send(self.pid, self.host, *options, timeout=timeout, mode=mode).expect(DONE)
        assert self.host.wait_gone(self.pid), "the copy at the source is still there"
        self.host = target
        assert target.alive(self.pid), f"{self.name} is not at its new host: {self.log.read_text(errors='replace')[-2000:]}"
        return outcome

    def connect(self, port):
        return self.host.connect(port)

    def kill(self):
        for host in self.pair.hosts:
            host.kill(self.pid)
            assert host.wait_gone(self.pid)


# How much there is to do at a stop depends on how busy the machine is: the limit is there to be met.
EASY = ("--downtime-limit", "60000")
modes = pytest.mark.parametrize("mode", ["stop", "pre-copy"])


def easy(mode):
    return EASY if mode == "pre-copy" else ()


def redis_moves(pair, megabytes, moves, mode="stop"):
    server = Program(pair, server_arguments(6379), "redis")
    ways = [lambda host=host: host.connect(6379) for host in pair.hosts]
    wait_for_server(lambda: server.connect(6379))
    keys = fill(lambda: server.connect(6379), megabytes << 20)
    times = []
    before = digest(lambda: server.connect(6379), keys)
    with WriteLoad(ways) as load:
        for _ in range(moves):
            load.wait_for_writes(500)
            times.append(server.move("--tcp-close", *easy(mode), mode=mode).report["downtime_ms"])
            load.wait_for_writes(500)
    assert load.problem is None and load.reconnects >= moves + 1
    assert load.verify(lambda: server.connect(6379)) >= 1000 * moves
    assert digest(lambda: server.connect(6379), keys) == before, "the static half changed"
    times.sort()
    print(f"{megabytes} MiB, {moves} moves, mode {mode}: downtime {times[0]:.0f} to {times[-1]:.0f} ms, median {times[moves // 2]:.0f} ms")


@pytest.mark.smoke
@pytest.mark.limit(240)
@modes
def test_redis_under_load_loses_no_acknowledged_write(pair, mode):
    redis_moves(pair, 100, 2, mode)


def compared(pair, megabytes, moves):
    """Moves redis under load in turns by `stop` and in rounds; the reports of each mode."""
    server = Program(pair, server_arguments(6379), "redis-compared")
    ways = [lambda host=host: host.connect(6379) for host in pair.hosts]
    wait_for_server(lambda: server.connect(6379))
    keys = fill(lambda: server.connect(6379), megabytes << 20)
    before = digest(lambda: server.connect(6379), keys)
    reports = {"stop": [], "pre-copy": []}
    with WriteLoad(ways) as load:
        for _ in range(moves):
            for mode, found in reports.items():
                load.wait_for_writes(2000)
                found.append(server.move("--tcp-close", mode=mode, *(("--downtime-limit", "1", "--max-rounds", "6", "--force") if mode != "stop" else ())).report)
        load.wait_for_writes(500)
    assert load.problem is None and digest(lambda: server.connect(6379), keys) == before
    load.verify(lambda: server.connect(6379))
    times = {mode: sorted(r["downtime_ms"] for r in found)[len(found) // 2] for mode, found in reports.items()}
    dirty = [r["dirty_bytes_per_second"] / (megabytes << 20) for r in reports["pre-copy"]]
    print(f"redis, {megabytes} MiB, {100 * max(dirty):.1f} % dirtied a second: downtime {times['stop']:.1f} ms by stop, {times['pre-copy']:.1f} ms by "
          f"pre-copy, ratio {times['stop'] / times['pre-copy']:.1f}")
    return reports, times


@pytest.mark.limit(240)
def test_redis_stands_still_for_a_part_of_its_pages_only(pair):
    """Counted, not timed: what is sent while it is stopped."""
    reports, _ = compared(pair, 200, 1)
    for report in reports["pre-copy"]:
        assert report["rounds"][-1]["frozen"] and report["rounds"][-1]["bytes"] * 20 < report["bytes_sent"], report["rounds"]


@pytest.mark.slow
@pytest.mark.limit(900)
def test_redis_with_a_gigabyte_stands_still_for_a_twentieth_of_the_time(pair):
    _, times = compared(pair, 1024, 3)
    assert times["pre-copy"] * 20 <= times["stop"], times


# Fifty times there and back.
often = pytest.param(100, id="fifty-times", marks=[pytest.mark.slow, pytest.mark.limit(1800)])
MOVES = [pytest.param(2, id="once"), often]


@modes
@pytest.mark.parametrize("moves", [often])
def test_redis_with_one_gigabyte(pair, moves, mode):
    redis_moves(pair, 1024, moves, mode)


def memcached(sock, text):
    """Sends one request and returns the answer up to its last line."""
    sock.sendall(text)
    answer = b""
    while not answer.endswith((b"END\r\n", b"STORED\r\n", b"ERROR\r\n")):
        part = sock.recv(65536)
        if not part:
            raise ConnectionError("memcached closed the connection")
        answer += part
    return answer


@modes
@pytest.mark.parametrize("moves", MOVES)
def test_memcached_keeps_every_item(pair, moves, mode):
    server = Program(pair, ["/usr/bin/memcached", "-u", "nobody", "-l", "0.0.0.0", "-p", "11211", "-U", "0", "-m", "128", "-t", "4"], "memcached")
    wait_until(lambda: _answers(server, 11211), 20, "memcached answers")
    values = {f"key{n}": hashlib.sha256(b"%d" % n).hexdigest().encode() * 64 for n in range(2000)}
    with server.connect(11211) as client:
        for key, value in values.items():
            assert memcached(client, b"set %s 0 0 %d\r\n%s\r\n" % (key.encode(), len(value), value)) == b"STORED\r\n"
    for _ in range(moves):
        server.move("--tcp-close", *easy(mode), mode=mode)
        with server.connect(11211) as client:
            for key, value in values.items():
                assert value in memcached(client, b"get %s\r\n" % key.encode()), f"{key} is lost"
            assert memcached(client, b"set new 0 0 3\r\nabc\r\n") == b"STORED\r\n"


def _answers(server, port):
    try:
        server.connect(port).close()
        return True
    except OSError:
        return False


def _get(server, port, name):
    with server.connect(port) as client:
        client.sendall(f"GET /{name} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while part := client.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0], head
    return body


@modes
@pytest.mark.parametrize("moves", MOVES)
def test_python_http_server_serves_on(pair, moves, mode):
    folder = pair.shared / "www"
    folder.mkdir(exist_ok=True)
    (folder / "page").write_bytes(b"content " * 10000)
    server = Program(pair, ["/usr/bin/python3", "-m", "http.server", "8000", "--bind", "0.0.0.0", "--directory", folder], "http",
                     environment={"PYTHONDONTWRITEBYTECODE": "1"})
    wait_until(lambda: _answers(server, 8000), 20, "http.server answers")
    assert _get(server, 8000, "page") == b"content " * 10000
    for _ in range(moves):
        server.move("--tcp-close", *easy(mode), mode=mode)
        for _ in range(3):  # each is a new thread of the server
            assert _get(server, 8000, "page") == b"content " * 10000


PROGRAMS = Path(__file__).resolve().parent / "programs"


def python(_):
    return ["/usr/bin/python3", "-B", PROGRAMS / "allocate.py"]


def node(_):
    return [found("node"), PROGRAMS / "allocate.js"]


def java(folder):
    """Its performance data would be a shared mapping of a file in the host's own /tmp."""
    program = found("java")
    subprocess.run([found("javac"), "-d", folder, PROGRAMS / "Allocate.java"], check=True, timeout=60)
    return [program, "-XX:-UsePerfData", "-Xshare:off", "-Xmx256m", "-cp", folder, "Allocate"]


def found(name):
    path = shutil.which(name, path="/usr/bin:/bin")
    if path is None:
        pytest.skip(f"program: {name} is not installed")
    return path


@pytest.mark.limit(120)
@modes
@pytest.mark.parametrize("moves", [pytest.param(4, id="twice"), often])
@pytest.mark.parametrize("program", [python, node, java])
def test_program_that_allocates_and_frees(pair, program, moves, mode):
    """Interpreters and their collectors: mappings come and go, arenas are reserved."""
    folder = pair.shared / f"{program.__name__}-{next(pair.numbers)}"
    folder.mkdir()
    running = Program(pair, program(folder), folder.name)
    lines = lambda: running.log.read_text(errors="replace").splitlines()

    def goes_on():
        before = len(lines())
        wait_until(lambda: len(lines()) > before + 5, 30, lambda: f"{running.name} goes on: {lines()[-5:]}")
        assert not any("FAIL" in line for line in lines()), lines()[-5:]

    wait_until(lambda: "ready" in lines(), 30, lambda: f"{running.name} is ready: {lines()[-5:]}")
    for _ in range(moves):
        goes_on()
        running.move(*easy(mode), mode=mode)
        goes_on()
    running.host.kill(running.pid, signal.SIGTERM)
    assert running.host.wait_gone(running.pid) and lines()[-1] == "done", lines()[-5:]
