"""Hosts made of namespaces.

    with Hosts(2) as (a, b):
        pid = a.spawn_daemon(["/usr/bin/redis-server", "--port", "6379"])
        print(b.run(["hostname"], capture_output=True, text=True).stdout)

Each host has its own process ids, network (a veth to every other host, addresses 10.77.0.1, 10.77.0.2 ...),
mounts (/proc, /dev, /run and /tmp are its own; the rest of the file system is shared, as on shared storage),
host name, System V IPC and cgroup v2 subtree. Process ids of different hosts start far apart, so that a
program can move without meeting a process of its number.

Life cycle: a keeper process per host (local_host_init start) waits for the end of a pipe that we hold. Leaving
the `with` block closes it, and so does any death of ours: everything in the host is killed, the network goes
with its namespace, and the keeper removes the cgroup. Only the scratch folder `shared` is ours to remove.
Everything here is for one thread at a time, except Host.connect and Host.network, which change the network
namespace of the calling thread alone.
"""
import contextlib
import ctypes
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CLONE_NEWNET = 0x40000000
DEFAULT_TIMEOUT = 60
_libc = ctypes.CDLL(None, use_errno=True)


class HostError(RuntimeError):
    """A host could not be made or a program could not be started in it."""


def helper_path():
    """local_host_init of the preset named by GODWIT_BUILD, else of whichever was built last."""
    wanted = os.environ.get("GODWIT_BUILD")
    folders = [REPO / "build" / wanted] if wanted else sorted((REPO / "build").glob("*"))
    found = [f / "bin/local_host_init" for f in folders if (f / "bin/local_host_init").exists()]
    if not found:
        raise HostError("local_host_init is not built; cmake --preset dev && cmake --build --preset dev")
    return max(found, key=lambda path: path.stat().st_mtime)


def cgroup2_mount():
    """Where the cgroup v2 hierarchy is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    raise HostError("no cgroup v2 hierarchy is mounted")


def _ip(*args):
    done = subprocess.run(["ip", *args], capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise HostError(f"ip {' '.join(args)}: {done.stderr.strip()}")


class HostProcess(subprocess.Popen):
    """A program in a host. `pid` is the runner outside; host_pid its number inside, outer_pid that here.

    Signals sent with send_signal() go to the runner, which forwards TERM, INT, HUP, USR1, USR2 and CONT;
    signal_inside() reaches the program with any of them. Killing the runner kills the program.
    """

    outer_pid = 0
    host_pid = 0

    def signal_inside(self, sig):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.outer_pid, sig)


def _inner_pid(outer):
    """The innermost number of a process, from NSpid in /proc/PID/status; 0 if it is gone."""
    try:
        for line in Path(f"/proc/{outer}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


class Host:
    """One host. Made by Hosts only."""

    def __init__(self, name, index, cgroup, keep, helper):
        self.name = name
        self.address = f"10.77.0.{index + 1}"
        self.cgroup = cgroup
        self._helper = str(helper)
        command = [self._helper, "start", "--name", name, "--cgroup", str(cgroup), "--first-pid", str(1000 + 10000 * index)]
        for path in keep:
            command += ["--keep", str(path)]
        self._keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if not select.select([self._keeper.stdout], [], [], 20)[0]:
            self.close()
            raise HostError(f"host {name} was not ready within 20 s")
        line = self._keeper.stdout.readline()
        if not line:
            self.close()
            raise HostError(f"host {name} could not be made; its helper says why above")
        self.init = int(line)
        self._netns_fd = os.open(f"/proc/{self.init}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    # ---- programs ----

    def command(self, verb, argv, *options):
        """The command line that runs (verb "run") or starts as a daemon ("spawn") a program in the host."""
        return [self._helper, verb, "--init", str(self.init), "--cgroup", str(self.cgroup), *options, "--", *map(str, argv)]

    def popen(self, argv, **kwargs):
        """Starts a program in the host; like subprocess.Popen otherwise."""
        reading, writing = os.pipe()
        try:
            fds = (*kwargs.pop("pass_fds", ()), writing)
            process = HostProcess(self.command("run", argv, "--report-fd", str(writing)), pass_fds=fds, **kwargs)
            os.close(writing)
            writing = -1
            ready = select.select([reading], [], [], 20)[0]
            text = os.read(reading, 32) if ready else b""
            if not text:
                process.kill()
                process.wait(20)
                raise HostError(f"{argv[0]} could not be started in host {self.name}")
            process.outer_pid = int(text)
            process.host_pid = _inner_pid(process.outer_pid)
            return process
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)

    def run(self, argv, timeout=DEFAULT_TIMEOUT, **kwargs):
        """subprocess.run in the host. At the time-out the program is killed and TimeoutExpired raised."""
        return subprocess.run(self.command("run", argv), timeout=timeout, **kwargs)

    def output(self, argv, timeout=DEFAULT_TIMEOUT):
        """What a program printed; an error if it failed."""
        return self.run(argv, timeout=timeout, check=True, capture_output=True, text=True).stdout

    def spawn_daemon(self, argv, log="/dev/null", env=None):
        """Starts a program that has nothing of ours: own session, no descriptor but /dev/null and the log.

        Returns its process id as the host sees it. Its parent is the host's init.
        """
        options = ["--log", str(log)]
        for key, value in (env or {}).items():
            options += ["--env", f"{key}={value}"]
        done = subprocess.run(self.command("spawn", argv, *options), capture_output=True, text=True, timeout=20)
        if done.returncode != 0 or not done.stdout.strip():
            raise HostError(f"{argv[0]}: {done.stderr.strip()}")
        return int(done.stdout)

    # ---- processes ----

    def processes(self):
        """{process id in the host: process id here} of everything in the host, its init excepted."""
        namespace = os.readlink(f"/proc/{self.init}/ns/pid")
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.init:
                continue
            try:
                if os.readlink(f"/proc/{entry}/ns/pid") != namespace:
                    continue
            except OSError:
                continue
            # A task that has entered the namespace for its children only is not of the host.
            inner = _inner_pid(int(entry))
            if inner:
                found[inner] = int(entry)
        return found

    def pids(self):
        """Process ids, as the host sees them, of everything that runs in it but init."""
        return sorted(self.processes())

    def outer(self, pid):
        """The number here of process `pid` of the host, or 0."""
        return self.processes().get(pid, 0)

    def alive(self, pid):
        outer = self.outer(pid)
        if not outer:
            return False
        try:
            return Path(f"/proc/{outer}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def kill(self, pid, sig=signal.SIGKILL):
        """Signals process `pid` of the host; no error if it is gone."""
        outer = self.outer(pid)
        if outer:
            with contextlib.suppress(ProcessLookupError):
                os.kill(outer, sig)

    def wait_gone(self, pid, timeout=10):
        """True once process `pid` is gone."""
        end = time.monotonic() + timeout
        while self.outer(pid):
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    # ---- network, files ----

    @contextlib.contextmanager
    def network(self):
        """The calling thread is in the host's network while this lasts."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(self._netns_fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns to the network of host {self.name}")
            yield
        finally:
            if _libc.setns(home, CLONE_NEWNET) != 0:
                os._exit(70)  # a thread lost in another network would make every later result wrong
            os.close(home)

    def connect(self, port, address=None, timeout=5):
        """A TCP connection made from within the host, to the host itself unless an address is given."""
        with self.network():
            return socket.create_connection((address or self.address, port), timeout=timeout)

    def path(self, path):
        """How a file of the host (its /tmp, /run ...) is reached from here."""
        return Path(f"/proc/{self.init}/root") / str(path).lstrip("/")

    def close(self):
        if self._keeper.poll() is None:
            self._keeper.stdin.close()
            try:
                self._keeper.wait(30)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
                self._keeper.wait(10)
        self._keeper.stdout.close()
        if getattr(self, "_netns_fd", -1) >= 0:
            os.close(self._netns_fd)
            self._netns_fd = -1


class Hosts:
    """`n` hosts, connected to each other, as a context manager. See the top of the file."""

    def __init__(self, n=2, helper=None):
        self._count = n
        self._helper = helper or helper_path()
        self._hosts = []
        self.shared = None  # a folder outside /tmp that every host sees at the same path

    def __enter__(self):
        if os.geteuid() != 0:
            raise HostError("local hosts need root")
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def _make(self):
        self.shared = Path(tempfile.mkdtemp(prefix="godwit-hosts-", dir="/var/tmp"))
        self.shared.chmod(0o755)
        name = f"godwit-hosts-{os.getpid()}-{secrets.token_hex(3)}"
        for index in range(self._count):
            letter = chr(ord("a") + index)
            cgroup = cgroup2_mount() / f"{name}-{letter}"
            self._hosts.append(Host(letter, index, cgroup, [REPO], self._helper))
        for left in range(self._count):
            _ip_in(self._hosts[left], "link", "set", "lo", "up")
            for right in range(left + 1, self._count):
                self._join(self._hosts[left], self._hosts[right])

    @staticmethod
    def _join(left, right):
        _ip("link", "add", f"to-{right.name}", "netns", str(left.init), "type", "veth",
            "peer", "name", f"to-{left.name}", "netns", str(right.init))
        for here, there in ((left, right), (right, left)):
            _ip_in(here, "address", "add", here.address, "peer", there.address, "dev", f"to-{there.name}")
            _ip_in(here, "link", "set", f"to-{there.name}", "up")

    def __exit__(self, *_):
        self.close()

    def close(self):
        for host in self._hosts:
            host.close()
        self._hosts.clear()
        if self.shared:
            shutil.rmtree(self.shared, ignore_errors=True)
            self.shared = None

    def __iter__(self):
        return iter(self._hosts)

    def __getitem__(self, index):
        return self._hosts[index]

    def __len__(self):
        return len(self._hosts)


def _ip_in(host, *args):
    with host.network():
        _ip(*args)
