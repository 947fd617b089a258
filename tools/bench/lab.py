"""Two local hosts, agents on them, and processes that move between them, with what the agents used.

    with Lab() as lab:
        victim = lab.victim(memory_mib=1024)
        run = lab.migrate(victim)         # to the other host
        print(run.report["downtime_ms"], run.source.cpu_s, run.destination.peak_kb)
        victim.finish()

Every wait has an end. Leaving the `with` block ends everything that runs on the hosts.
"""
import contextlib
import itertools
import json
import os
import resource
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from figures import BenchError
from localhosts import Hosts
from localhosts.hosts import REPO
from localhosts.redis_load import fill, server_arguments, wait_for_server

BIN = REPO / "build" / os.environ.get("GODWIT_BUILD", "release") / "bin"
GODWIT, BENCH_VICTIM, GODWIT_BENCH = BIN / "godwit", BIN / "bench_victim", BIN / "godwit_bench"
PORT, REDIS = 7467, 6379
STATE = "/run/godwit-state"  # on each host's own /run
MIGRATION_LIMIT = 300
GIB = 1 << 30


def wait_until(condition, timeout, what):
    """The first true value of condition(). There is no event for what other processes do, so it is polled."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise BenchError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(0.005)
    return value


def memory_available():
    """Bytes that processes could still touch."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


@dataclass
class Usage:
    """What one agent used: CPU time of all its threads and ended children, most memory it ever held (VmHWM)."""
    pid: int = 0
    cpu_s: float = 0.0
    peak_kb: int = 0

    def look(self, pid):
        self.pid = pid
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_kb = max(self.peak_kb, int(line.split()[1]))
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.cpu_s = sum(map(int, fields[11:15])) / 100


@dataclass
class Run:
    """One migration that succeeded."""
    report: dict
    source: Usage
    destination: Usage
    began: float  # time.time()
    ended: float

    @property
    def downtime_ms(self):
        return self.report["downtime_ms"]

    def first_round(self):
        """(bytes of memory sent, bytes on the link, seconds) of round 0; in mode stop of the only one."""
        first = self.report["rounds"][0]
        return first["pages"] * 4096, first["bytes"], first["ms"] / 1000

    def cpu_per_gib(self):
        """CPU seconds of (source, destination) for each GiB of memory sent in all rounds."""
        sent = sum(r["pages"] for r in self.report["rounds"]) * 4096 / GIB
        return self.source.cpu_s / sent, self.destination.cpu_s / sent


class Moving:
    """A process that is on one of the hosts. `options` go to every `godwit migrate` of it."""

    def __init__(self, lab, host, pid, options=()):
        self.lab, self.host, self.pid, self.options = lab, host, pid, tuple(options)

    def check(self):
        if not self.host.alive(self.pid):
            raise BenchError(f"process {self.pid} does not run on host {self.host.name}")

    def kill(self):
        for host in self.lab.hosts:
            host.kill(self.pid)
            host.wait_gone(self.pid, 30)


class Victim(Moving):
    """bench_victim: checks itself at its end."""

    def __init__(self, lab, options):
        host = lab.hosts[0]
        self.log = lab.shared / f"victim-{next(lab.numbers)}.log"
        arguments = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        super().__init__(lab, host, host.spawn_daemon([BENCH_VICTIM, "--log", self.log, *arguments]))
        wait_until(lambda: self.lines("ready") or self.lines("FAIL") or not host.alive(self.pid), 120, lambda: f"victim {options} is ready")
        self.check()

    def lines(self, word):
        with contextlib.suppress(FileNotFoundError):
            return [line for line in self.log.read_text().splitlines() if line.startswith(word)]
        return []

    def beats(self):
        """[(time.time(), writes so far)]"""
        return [(int(line.split()[1]) / 1e9, int(line.split()[2])) for line in self.lines("beat") if line.count(" ") == 2]

    def finish(self):
        """Ends it; all that it holds must be as it should be."""
        self.check()
        self.host.kill(self.pid, signal.SIGTERM)
        wait_until(lambda: self.lines("done") or self.lines("FAIL") or not self.host.alive(self.pid), 120, "the victim checked itself")
        if not self.lines("done"):
            raise BenchError(f"the victim lost something: {self.lines('FAIL') or 'it died'}")
        self.kill()


class Redis(Moving):
    """A redis-server with some data of its own."""

    def __init__(self, lab, mebibytes):
        host = lab.hosts[0]
        super().__init__(lab, host, host.spawn_daemon(server_arguments(REDIS)), ["--tcp-close"])
        wait_for_server(self.connect)
        self.keys = fill(self.connect, mebibytes << 20)

    def connect(self):
        return self.host.connect(REDIS)

    def finish(self):
        self.check()
        wait_for_server(self.connect)
        self.kill()


class Lab:
    """Two hosts and keys for both; see the top of the file."""

    def __init__(self, mode="pre-copy"):
        self.mode = mode
        self.numbers = itertools.count(1)
        self.hosts = Hosts(2)

    def __enter__(self):
        self.hosts.__enter__()
        try:
            self.shared = self.hosts.shared
            subprocess.run([GODWIT, "keys", "init", self.shared / "keys"], check=True, timeout=30, stdout=subprocess.DEVNULL)
        except BaseException:
            self.hosts.close()
            raise
        return self

    def __exit__(self, *_):
        self.hosts.close()

    def other(self, host):
        return self.hosts[1] if host is self.hosts[0] else self.hosts[0]

    def victim(self, **options):
        return Victim(self, options)

    def redis(self, mebibytes):
        return Redis(self, mebibytes)

    # ---- the network between them ----

    def shape(self, rate="1gbit"):
        """Limits what each host sends to the other."""
        for host in self.hosts:
            host.run(["tc", "qdisc", "replace", "dev", f"to-{self.other(host).name}", "root", "tbf", "rate", rate, "burst", "256kb",
                      "latency", "50ms"], check=True, timeout=20)

    def iperf(self, streams=1, seconds=2):
        """(bytes per second received, CPU seconds of both ends per GiB) of iperf3 from the first host to the second."""
        a, b = self.hosts
        with open(self.shared / "iperf3.log", "w", encoding="utf-8") as log:
            server = b.popen(["iperf3", "-s", "-1", "--forceflush"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: "listening" in (self.shared / "iperf3.log").read_text(), 10, "iperf3 listens")
            done = a.run(["iperf3", "-c", b.address, "-P", streams, "-t", seconds, "-J"], timeout=seconds + 20, capture_output=True, text=True)
            end = json.loads(done.stdout).get("end", {})
            if "sum_received" not in end:
                raise BenchError(f"iperf3: {done.stdout[-300:]}{done.stderr}")
            rate = end["sum_received"]["bits_per_second"] / 8
            load = end["cpu_utilization_percent"]
            return rate, (load["host_total"] + load["remote_total"]) / 100 * GIB / rate
        finally:
            server.terminate()
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(5)

    # ---- migrations ----

    def security(self, host, tls):
        return ["--keys", self.shared / "keys" / ("source" if host is self.hosts[0] else "destination")] if tls else ["--insecure"]

    @contextlib.contextmanager
    def serve(self, host, tls):
        """An agent that waits on `host`."""
        log = self.shared / f"serve-{next(self.numbers)}.log"
        with open(log, "wb") as out:
            agent = host.popen([GODWIT, "serve", "--listen", f"{host.address}:{PORT}", "--state-dir", STATE, *self.security(host, tls)],
                               stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        agent.log = log
        try:
            wait_until(lambda: "listening on" in log.read_text() or agent.poll() is not None, 20, "godwit serve listens")
            yield agent
        finally:
            agent.terminate()
            try:
                agent.wait(15)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait(10)

    def migrate(self, moving, mode=None, tls=True, streams=1, options=()):
        """Moves a process to the other host, whatever the downtime: it is what is measured. A BenchError if that fails."""
        here, there, mode = moving.host, self.other(moving.host), mode or self.mode
        command = [GODWIT, "migrate", "--tree", moving.pid, "--to", f"{there.address}:{PORT}", "--mode", mode, "--json",
                   "--state-dir", STATE, *self.security(here, tls), *moving.options, *options]
        if mode == "pre-copy":
            command += ["--force"]
        if streams != 1:
            command += ["--streams", streams]
        with self.serve(there, tls) as agent:
            out, errors = self.shared / "migrate.json", self.shared / "migrate.log"
            source, destination = Usage(), Usage()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            began = time.time()
            with open(out, "wb") as stdout, open(errors, "wb") as stderr:
                process = here.popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
            code = self._wait(process, source)
            ended = time.time()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            source.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            destination.look(agent.outer_pid)
            if code != 0:
                raise BenchError(f"godwit migrate ended with exit code {code}: {errors.read_text()[-2000:]}{agent.log.read_text()[-2000:]}")
            moving.host = there
            moving.check()
            return Run(json.loads(out.read_text()), source, destination, began, ended)

    @staticmethod
    def _wait(process, usage):
        """The exit code. VmHWM only grows, so what is seen shortly before the end is what it was."""
        end = time.monotonic() + MIGRATION_LIMIT
        try:
            while process.poll() is None:
                if time.monotonic() > end:
                    raise BenchError(f"the migration took longer than {MIGRATION_LIMIT} s")
                usage.look(process.outer_pid)
                time.sleep(0.01)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)
        return process.returncode
