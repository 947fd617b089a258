"""Real programs move while they are used, and nobody loses anything but the connection."""
import hashlib

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

    def move(self, *options, timeout=170):
        target = self.pair.other(self.host)
        self.pair.serving(target)
        outcome = self.pair.send(self.pid, self.host, *options, timeout=timeout).expect(DONE)
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


def redis_moves(pair, megabytes, moves):
    server = Program(pair, server_arguments(6379), "redis")
    ways = [lambda host=host: host.connect(6379) for host in pair.hosts]
    wait_for_server(lambda: server.connect(6379))
    keys = fill(lambda: server.connect(6379), megabytes << 20)
    times = []
    before = digest(lambda: server.connect(6379), keys)
    with WriteLoad(ways) as load:
        for _ in range(moves):
            load.wait_for_writes(500)
            times.append(server.move("--tcp-close").report["downtime_ms"])
            load.wait_for_writes(500)
    assert load.problem is None and load.reconnects >= moves + 1
    assert load.verify(lambda: server.connect(6379)) >= 1000 * moves
    assert digest(lambda: server.connect(6379), keys) == before, "the static half changed"
    times.sort()
    print(f"{megabytes} MiB, {moves} moves: downtime {times[0]:.0f} to {times[-1]:.0f} ms, median {times[moves // 2]:.0f} ms")


@pytest.mark.smoke
@pytest.mark.limit(240)
def test_redis_under_load_loses_no_acknowledged_write(pair):
    redis_moves(pair, 100, 2)


# Fifty times there and back.
often = pytest.param(100, id="fifty-times", marks=[pytest.mark.slow, pytest.mark.limit(1800)])
MOVES = [pytest.param(2, id="once"), often]


@pytest.mark.parametrize("moves", [often])
def test_redis_with_one_gigabyte(pair, moves):
    redis_moves(pair, 1024, moves)


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


@pytest.mark.parametrize("moves", MOVES)
def test_memcached_keeps_every_item(pair, moves):
    server = Program(pair, ["/usr/bin/memcached", "-u", "nobody", "-l", "0.0.0.0", "-p", "11211", "-U", "0", "-m", "128", "-t", "4"], "memcached")
    wait_until(lambda: _answers(server, 11211), 20, "memcached answers")
    values = {f"key{n}": hashlib.sha256(b"%d" % n).hexdigest().encode() * 64 for n in range(2000)}
    with server.connect(11211) as client:
        for key, value in values.items():
            assert memcached(client, b"set %s 0 0 %d\r\n%s\r\n" % (key.encode(), len(value), value)) == b"STORED\r\n"
    for _ in range(moves):
        server.move("--tcp-close")
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


@pytest.mark.parametrize("moves", MOVES)
def test_python_http_server_serves_on(pair, moves):
    folder = pair.shared / "www"
    folder.mkdir()
    (folder / "page").write_bytes(b"content " * 10000)
    server = Program(pair, ["/usr/bin/python3", "-m", "http.server", "8000", "--bind", "0.0.0.0", "--directory", folder], "http",
                     environment={"PYTHONDONTWRITEBYTECODE": "1"})
    wait_until(lambda: _answers(server, 8000), 20, "http.server answers")
    assert _get(server, 8000, "page") == b"content " * 10000
    for _ in range(moves):
        server.move("--tcp-close")
        for _ in range(3):  # each is a new thread of the server
            assert _get(server, 8000, "page") == b"content " * 10000
