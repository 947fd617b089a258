"""A redis client that can tell whether a server lost anything.

    static = fill(connect, 256 << 20)           # database 1 gets about 256 MiB that never change
    before = digest(connect, static)
    with WriteLoad([connect_a, connect_b]) as load: ...   # database 0: writes, reconnecting wherever it can
    load.verify(connect_b); assert digest(connect_b, static) == before

`connect` is a function without arguments that returns a connected socket. The server must run with
`--enable-debug-command yes`. Requests are bounded in size and rate: the load is there to be noticed, not to win.
"""
import hashlib
import os
import threading
import time

STATIC_DATABASE = 1
VALUE_BYTES = 16384
MAX_WRITES_PER_SECOND = 20000


class RedisError(RuntimeError):
    """The server answered with an error."""


class Client:
    """One connection; RESP2. Not thread-safe."""

    def __init__(self, sock):
        self._socket = sock
        self._socket.settimeout(10)
        self._file = sock.makefile("rb", buffering=65536)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._file.close()
        self._socket.close()

    @staticmethod
    def encode(*words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts += [b"$%d\r\n" % len(data), data, b"\r\n"]
        return b"".join(parts)

    def send(self, data):
        self._socket.sendall(data)

    def answer(self):
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            length = int(rest)
            if length < 0:
                return None
            data = self._file.read(length + 2)
            if len(data) != length + 2:
                raise ConnectionError("the server closed the connection")
            return data[:-2]
        return [self.answer() for _ in range(int(rest))]

    def command(self, *words):
        self.send(self.encode(*words))
        return self.answer()


def fill(connect, total, batch=64):
    """Sets keys of database 1 until their values are `total` bytes. Returns how many keys there are."""
    noise = os.urandom(VALUE_BYTES * 2)
    count = max(1, total // VALUE_BYTES)
    with Client(connect()) as client:
        client.command("SELECT", STATIC_DATABASE)
        for start in range(0, count, batch):
            numbers = range(start, min(start + batch, count))
            # Every value begins with its number and then differs by where it is cut from the noise.
            client.send(b"".join(client.encode("SET", f"static:{n}", b"%016d" % n + noise[n % VALUE_BYTES:][:VALUE_BYTES - 16])
                                 for n in numbers))
            for _ in numbers:
                client.answer()
    return count


def digest(connect, count, batch=256):
    """One hash over DEBUG DIGEST-VALUE of every static key."""
    total = hashlib.sha256()
    with Client(connect()) as client:
        client.command("SELECT", STATIC_DATABASE)
        for start in range(0, count, batch):
            keys = [f"static:{n}" for n in range(start, min(start + batch, count))]
            for value in client.command("DEBUG", "DIGEST-VALUE", *keys):
                total.update(value)
    return total.hexdigest()


class WriteLoad:
    """Writes to database 0 from a thread of its own, whoever of the servers answers, and remembers what was acknowledged.

    `longest_gap_s` is the longest time between two acknowledged writes: the downtime as a client sees it.
    """

    def __init__(self, connects, pipeline=16):
        self._connects = list(connects)
        self._pipeline = pipeline
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="redis-load", daemon=True)
        self.acknowledged = 0   # keys load:0 .. load:acknowledged-1 are promised
        self.reconnects = 0
        self.longest_gap_s = 0.0
        self.problem = None

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._stop.set()
        self._thread.join(30)

    def wait_for_writes(self, more, timeout=30):
        """Returns once `more` further writes were acknowledged."""
        goal, end = self.acknowledged + more, time.monotonic() + timeout
        while self.acknowledged < goal:
            if self.problem or time.monotonic() > end:
                raise RedisError(f"no further writes acknowledged: {self.problem}")
            time.sleep(0.005)

    @staticmethod
    def value(number):
        return b"value-%d-" % number + hashlib.md5(b"%d" % number).hexdigest().encode() * 8

    def _work(self):
        try:
            self._write_until_stopped()
        except RedisError as error:
            self.problem = error

    def _write_until_stopped(self):
        client, last, which = None, time.monotonic(), 0
        pause = self._pipeline / MAX_WRITES_PER_SECOND
        while not self._stop.is_set():
            try:
                if client is None:
                    client = Client(self._connects[which]())
                    self.reconnects += 1
                self._batch(client)
                now = time.monotonic()
                self.longest_gap_s, last = max(self.longest_gap_s, now - last), now
                self._stop.wait(pause)
            except OSError:
                if client is not None:
                    client.close()
                client, which = None, (which + 1) % len(self._connects)
                self._stop.wait(0.005)
        if client is not None:
            client.close()

    def _batch(self, client):
        # A number is used again until it was acknowledged: writing a key twice with one value is the same as once.
        numbers = range(self.acknowledged, self.acknowledged + self._pipeline)
        client.send(b"".join(client.encode("SET", f"load:{n}", self.value(n)) for n in numbers))
        for _ in numbers:
            client.answer()
            self.acknowledged += 1

    def verify(self, connect, batch=512):
        """How many acknowledged keys are there with the right value; an error names the first that is not."""
        with Client(connect()) as client:
            for start in range(0, self.acknowledged, batch):
                numbers = range(start, min(start + batch, self.acknowledged))
                values = client.command("MGET", *(f"load:{n}" for n in numbers))
                for number, value in zip(numbers, values):
                    if value != self.value(number):
                        raise RedisError(f"load:{number} was acknowledged and is {value!r}")
        return self.acknowledged


def server_arguments(port=6379):
    """How the tests and the quickstart run redis-server: memory only, reachable from the other host."""
    return ["/usr/bin/redis-server", "--port", str(port), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "",
            "--appendonly", "no", "--daemonize", "no", "--enable-debug-command", "yes", "--dir", "/"]


def wait_for_server(connect, timeout=20):
    """Returns once the server answers."""
    end = time.monotonic() + timeout
    while True:
        try:
            with Client(connect()) as client:
                client.command("PING")
                return
        except (OSError, RedisError):
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
