"""What the end-to-end tests share: agents on two local hosts, victims, and what must hold afterwards.

    with Pair() as pair:
        victim = pair.victim("threads", "--threads", "8")
        pair.migrate(victim)              # from where it is to the other host
        victim.check_running()
        victim.finish()

Phases are reached by markers (lines in a victim's log, GODWIT_FAULT=stop@NAME), never by sleeping; every wait has
an end.
"""
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tools"))
from localhosts import Hosts  # noqa: E402

PRESET = os.environ.setdefault("GODWIT_BUILD", "dev")
BIN = REPO / "build" / PRESET / "bin"
GODWIT = BIN / "godwit"
VICTIMS = BIN / "victims"
PORT = 7467
STATE = "/run/godwit-state"  # on each host's own /run

DONE, FAILED, USAGE, UNSUPPORTED, NETWORK, UNCERTAIN = range(6)


def wait_until(condition, timeout, what):
    """The first true value of condition(). There is no event for what other processes do, so it is polled."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout} s: {what() if callable(what) else what}"
        time.sleep(0.01)


@dataclass
class Outcome:
    """How one run of godwit ended."""
    code: int
    stdout: str
    stderr: str

    @property
    def report(self):
        return json.loads(self.stdout)

    def expect(self, *codes):
        assert self.code in codes, f"exit code {self.code}, expected {codes}\n{self.stdout[-2000:]}{self.stderr[-6000:]}"
        return self

    def says(self, *patterns):
        """The user is told about each of these, as regular expressions."""
        missing = [p for p in patterns if not re.search(p, self.stderr, re.IGNORECASE)]
        assert not missing, f"not said: {missing}\n{self.stderr[-6000:]}"
        return self


class Server:
    """`godwit serve` on a host, ready to accept."""

    def __init__(self, pair, host, environment=None, options=None, listen=None):
        self.host = host
        self.log = pair.shared / f"serve-{host.name}-{next(pair.numbers)}.log"
        argv = [GODWIT, "serve", "--listen", listen or f"{host.address}:{PORT}", *(pair.security(host) if options is None else options),
                "--state-dir", STATE, "-v"]
        with open(self.log, "wb") as log:
            self.process = host.popen(argv, stderr=log, stdout=log, stdin=subprocess.DEVNULL,
                                      env={**os.environ, **(environment or {})})
        try:
            wait_until(lambda: "godwit: listening on" in self.text() or self.process.poll() is not None, 20, self.text)
            assert self.process.poll() is None, f"serve ended with {self.process.poll()}: {self.text()}"
        except BaseException:
            self.close()
            raise

    def text(self):
        return self.log.read_text(errors="replace")

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


class Victim:
    """A self-checking program on one of the hosts; see tests/victims/victim.h."""

    def __init__(self, pair, name, arguments, host, environment=None, prefix=(), patience=20):
        self.pair = pair
        self.name = name
        self.host = host
        self.folder = pair.shared / f"{name}-{next(pair.numbers)}"
        self.folder.mkdir()
        self.folder.chmod(0o777)
        self.log = self.folder / "log"
        arguments = [str(a).replace("{dir}", str(self.folder)) for a in arguments]
        self.pid = host.spawn_daemon([*prefix, VICTIMS / name, "--log", self.log, *arguments], log=self.folder / "output", env=environment)
        wait_until(lambda: "ready" in self.lines() or self.ended(), patience, lambda: f"{name}: {self.lines()[-5:]}")
        self.check_unharmed()

    def lines(self):
        try:
            return self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def ended(self):
        return not self.host.alive(self.pid)

    def output(self):
        return "\n".join(self.lines()[-8:]) + "\n" + (self.folder / "output").read_text(errors="replace")[-2000:]

    def check_unharmed(self):
        assert not any(line.startswith("FAIL") for line in self.lines()), f"{self.name} was harmed: {self.output()}"
        assert not self.ended(), f"{self.name} (pid {self.pid} on host {self.host.name}) has ended: {self.output()}"

    def progress(self):
        return sum(line.startswith("ok ") for line in self.lines())

    def check_running(self, timeout=20):
        """It goes on, unharmed, on the host where it should be."""
        self.check_unharmed()
        if self.name == "sleep":
            return
        before = self.progress()
        wait_until(lambda: self.progress() > before or self.ended() or any(l.startswith("FAIL") for l in self.lines()),
                   timeout, lambda: f"{self.name} goes on; {self.state()}\n{self.output()}")
        self.check_unharmed()

    def state(self):
        """What the kernel says of it, for messages."""
        outer = self.host.outer(self.pid)
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{outer}/status").read_text()
            return " ".join(l for l in status.splitlines() if re.match("State|TracerPid|Threads", l))
        return "gone"

    def finish(self):
        """Ends it in peace: it checks all it holds a last time."""
        self.check_unharmed()
        self.host.kill(self.pid, signal.SIGTERM)
        assert self.host.wait_gone(self.pid, 30), f"{self.name} does not end: {self.state()}\n{self.output()}"
        assert self.lines()[-1:] == ["done"], f"{self.name} ended badly: {self.output()}"

    def kill(self):
        for host in self.pair.hosts:
            host.kill(self.pid)
            assert host.wait_gone(self.pid)


class Held:
    """An agent that stands still at a fault point."""

    def __init__(self, agent):
        self.agent = agent
        self.outcome = None

    def stopped(self):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.agent}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def go_on(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.agent, signal.SIGCONT)


class Pair:
    """Two hosts, keys for both, and on demand an agent on each."""

    def __init__(self):
        self.numbers = itertools.count(1)
        self.hosts = Hosts(2)
        self.servers = {}
        self.victims = []
        self.last = []

    def __enter__(self):
        self.hosts.__enter__()
        try:
            self.a, self.b = self.hosts
            self.shared = self.hosts.shared
            self.make_keys("keys")
        except BaseException:
            self.hosts.close()
            raise
        return self

    def __exit__(self, *_):
        for server in self.servers.values():
            server.close()
        self.hosts.close()

    def make_keys(self, name):
        """Keys for both hosts, in a folder of that name."""
        subprocess.run([GODWIT, "keys", "init", self.shared / name], check=True, timeout=30, stdout=subprocess.DEVNULL)

    def security(self, host, name="keys"):
        """Options by which the agent of a host proves who it is."""
        return ["--keys", str(self.shared / name / ("source" if host is self.a else "destination"))]

    def other(self, host):
        return self.b if host is self.a else self.a

    def serve(self, host, environment=None, options=None, listen=None):
        """(Re)starts the agent of a host."""
        self.stop_serving(host)
        self.servers[host.name] = Server(self, host, environment, options, listen)
        return self.servers[host.name]

    def stop_serving(self, host):
        if host.name in self.servers:
            self.servers.pop(host.name).close()

    def serving(self, host):
        server = self.servers.get(host.name)
        return server if server and server.process.poll() is None else self.serve(host)

    def victim(self, name, *arguments, host=None, environment=None, **how):
        """Starts one. `prefix`: a program that becomes it, as setpriv(1) does; `patience`: seconds until it is ready."""
        victim = Victim(self, name, arguments, host or self.a, environment, **how)
        self.victims.append(victim)
        return victim

    def clear_victims(self):
        while self.victims:
            self.victims.pop().kill()

    def reset(self):
        """Makes the hosts fit for the next test after one that failed, so that one failure stays one."""
        for host in self.hosts:
            self.stop_serving(host)
            for group in reversed(cgroups_of(host)):
                (host.cgroup / group / "cgroup.kill").write_text("1")
            for pid in host.pids():
                host.kill(pid)
                host.wait_gone(pid)
            for group in reversed(cgroups_of(host)):
                with contextlib.suppress(OSError):
                    os.rmdir(host.cgroup / group)
            host.output(["rm", "-rf", STATE])
        self.victims.clear()

    def godwit(self, host, *arguments, timeout=60, environment=None):
        """Runs the command on a host to its end."""
        with host.popen([GODWIT, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        text=True, errors="replace", env={**os.environ, **(environment or {})}) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                stdout, stderr = process.communicate(timeout=10)
                raise AssertionError(f"godwit {arguments[0]} did not end within {timeout} s\n{stderr[-6000:]}") from None
            except BaseException:  # the test's own time limit: do not wait for it any longer
                process.kill()
                raise
        outcome = Outcome(process.returncode, stdout, stderr)
        self.last.append((f"godwit {' '.join(map(str, arguments))} on {host.name}: {outcome.code}", stderr))
        del self.last[:-4]
        return outcome

    def migrate_arguments(self, pid, source, *options, to=None, security=None, mode="stop"):
        """The command line of `godwit migrate`."""
        target = to or f"{self.other(source).address}:{PORT}"
        return ["migrate", "--tree", pid, "--to", target, "--mode", mode, *(self.security(source) if security is None else security),
                "--state-dir", STATE, "--json", *options]

    def send(self, pid, source, *options, to=None, security=None, mode="stop", timeout=120, environment=None):
        """`godwit migrate` as it is; whoever calls looks at the outcome."""
        return self.godwit(source, *self.migrate_arguments(pid, source, *options, to=to, security=security, mode=mode),
                           timeout=timeout, environment=environment)

    @contextlib.contextmanager
    def held(self, pid, source, *options, at, side="a", mode="pre-copy", timeout=120, environment=None):
        """A migration that stands still at a fault point of one agent while the body runs, and then goes on to its end.

        The agent of host b must be started by this: it is, if `side` is "b". The Held that the body gets has the outcome
        afterwards.
        """
        fault = {"GODWIT_FAULT": f"stop@{at}"}
        if side == "b":
            self.serve(self.b, environment={**(environment or {}), **fault})
        arguments = self.migrate_arguments(pid, source, *options, mode=mode)
        process = source.popen([GODWIT, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               errors="replace", env={**os.environ, **(environment or {}), **(fault if side == "a" else {})})
        agent = process.outer_pid if side == "a" else self.servers["b"].process.outer_pid
        held = Held(agent)
        try:
            wait_until(lambda: held.stopped() or process.poll() is not None, 30, f"the agent of host {side} stops at {at}")
            assert process.poll() is None, f"{at} was not reached: exit code {process.returncode}: {process.communicate(timeout=10)}"
            yield held
            held.go_on()
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            held.go_on()
            if process.poll() is None:
                process.kill()
            process.wait(10)
        held.outcome = Outcome(process.returncode, stdout, stderr)
        self.last.append((f"godwit {' '.join(map(str, arguments))} on {source.name}: {process.returncode}", stderr))
        del self.last[:-4]

    def migrate(self, victim, *options, **kwargs):
        """Moves a victim to the other host, which must work, and follows it there."""
        source, target = victim.host, self.other(victim.host)
        self.serving(target)
        outcome = self.send(victim.pid, source, *options, **kwargs).expect(DONE)
        assert source.wait_gone(victim.pid, 10), f"the copy on host {source.name} is still there: {victim.state()}"
        victim.host = target
        victim.check_running()
        return outcome

    def recover(self, host, timeout=60):
        return self.godwit(host, "recover", "--state-dir", STATE, timeout=timeout)

    # ---- what must hold afterwards ----

    def check_clean(self, allowed=()):
        """Nothing of a migration is left on either host: no process, cgroup or packet filter."""
        for host in self.hosts:
            server = self.servers.get(host.name)
            if server and server.process.poll() is not None:
                server = None
            known = {v.pid for v in self.victims} | set(allowed)
            if server:
                known |= {server.process.host_pid}
            wait_until(lambda: set(host.pids()) <= known, 10, lambda: f"strangers on host {host.name}: {describe(host, known)}")
            if not server:
                self.recover(host).expect(DONE)  # a tree that outlived `serve`: its cgroup is tidied up by the next agent
            wait_until(lambda: not cgroups_of(host), 10, lambda: f"cgroups left on host {host.name}: {cgroups_of(host)}")
            assert not host.output(["nft", "list", "ruleset"]).strip(), f"packet filters left on host {host.name}"


def cgroups_of(host):
    """Cgroups below the host's own. Agents remove some meanwhile: os.walk passes over what is gone."""
    return sorted(os.path.relpath(os.path.join(folder, name), host.cgroup) for folder, names, _ in os.walk(host.cgroup) for name in names)


def describe(host, known):
    found = []
    for inner, outer in host.processes().items():
        if inner not in known:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{outer}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                stat = Path(f"/proc/{outer}/stat").read_text().rpartition(")")[2].split()[0]
                found.append(f"{inner} {stat} {command.strip()}")
    return found


# ---- a process as /proc shows it ---------------------------------------------------------------------------

_STATUS = ("Name", "Umask", "Tgid", "NStgid", "NSpid", "NSpgid", "NSsid", "PPid", "Uid", "Gid", "Groups", "FDSize", "Threads", "SigQ",
           "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
           "NoNewPrivs", "Seccomp", "THP_enabled", "Cpus_allowed", "VmLck")
_OUTER = {"Tgid", "PPid", "NStgid", "NSpid", "NSpgid", "NSsid", "FDSize"}  # numbers that differ by namespace


def _innermost(name, value):
    return value.split()[-1] if name.startswith("NS") and value.split() else value


def picture(host, pid):
    """All that /proc says of a process which must be the same wherever it runs, by name."""
    root = Path(f"/proc/{host.outer(pid)}")
    seen = {}
    for name in ("cmdline", "environ", "auxv", "comm", "limits", "oom_score_adj", "coredump_filter", "personality"):
        seen[name] = (root / name).read_bytes()
    for name in ("cwd", "exe", "root"):
        seen[name] = os.readlink(root / name)
    for line in (root / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in _STATUS and (key not in _OUTER or key.startswith("NS")):
            seen[f"status {key}"] = _innermost(key, value.strip())
    # Shared anonymous memory has a number of its kernel.
    seen["maps"] = re.sub(r"00:01 \d+( +/dev/zero \(deleted\))", r"00:01 -\1", (root / "maps").read_text())
    for fd in sorted(os.listdir(root / "fd"), key=int):
        target = re.sub(r":\[\d+\]", ":[]", os.readlink(root / "fd" / fd))
        info = re.sub(r"^(ino|mnt_id|tfd.*|sigmask|it_value|ticks|eventfd-id|clockid)\b.*\n", "", (root / "fdinfo" / fd).read_text(), flags=re.M)
        seen[f"fd {fd}"] = (target, info)
    for task in sorted(os.listdir(root / "task"), key=int):
        status = dict(l.partition(":")[::2] for l in (root / "task" / task / "status").read_text().splitlines())
        inner = status["NSpid"].split()[-1]
        seen[f"task {inner}"] = tuple(status[k].strip() for k in ("Name", "SigPnd", "SigBlk"))
    return seen


def differences(before, after, ignore=()):
    """Names of what differs, with both values."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name) or any(re.match(p, name) for p in ignore):
            continue
        if name == "maps":
            left, right = (set(p.get(name, "").splitlines()) for p in (before, after))
            found.append("maps: lost " + repr(sorted(left - right)) + " gained " + repr(sorted(right - left)))
        else:
            found.append(f"{name}: {before.get(name)!r} -> {after.get(name)!r}")
    return found
