"""The local hosts are what the other tests take them for, and the victims are sound where nothing moves them."""
import os
import subprocess
import sys

import pytest

from harness import REPO, wait_until
from localhosts import HostError, Hosts
from localhosts.hosts import cgroup2_mount
from test_migrate import CASES, EITHER, rows


@pytest.fixture(scope="module")
def hosts():
    with Hosts(2) as made:
        yield made


def test_hosts_have_names_addresses_and_process_ids_of_their_own(hosts):
    a, b = hosts
    assert a.output(["hostname"]) == "godwit-a\n" and b.output(["hostname"]) == "godwit-b\n"
    first, second = (int(h.output(["sh", "-c", "echo $$"])) for h in hosts)
    assert first < 10000 < second
    a.output(["sh", "-c", "echo mine > /tmp/file; echo mine > /run/file"])
    assert b.run(["test", "-e", "/tmp/file", "-o", "-e", "/run/file"]).returncode == 1
    (hosts.shared / "both").write_text("ours")
    assert b.output(["cat", hosts.shared / "both"]) == "ours"


def test_hosts_reach_each_other_only(hosts):
    a, b = hosts
    with b.network():
        import socket
        listener = socket.create_server((b.address, 7100))
    with listener, a.connect(7100, b.address) as client:
        peer, address = listener.accept()
        assert address[0] == a.address
        peer.close()
        assert client.recv(1) == b""
    assert "eth" not in a.output(["ip", "-brief", "link"])


def test_programs_see_only_their_own_cgroup(hosts):
    text = hosts[0].output(["cat", "/proc/self/cgroup"])
    assert "0::/\n" in text
    hosts[0].output(["sh", "-c", f"mkdir {cgroup2_mount()}/mine && rmdir {cgroup2_mount()}/mine"])


def test_exit_codes_and_signals_are_passed_on(hosts):
    assert hosts[0].run(["sh", "-c", "exit 7"]).returncode == 7
    assert hosts[0].run(["sh", "-c", "kill -9 $$"]).returncode == 137
    assert hosts[0].run(["/no/such/program"], stderr=subprocess.DEVNULL).returncode == 127
    process = hosts[0].popen(["sleep", "60"])
    process.terminate()
    assert process.wait(10) == 143 and not hosts[0].alive(process.host_pid)


def test_killing_the_runner_kills_the_program(hosts):
    process = hosts[0].popen(["sleep", "60"])
    process.kill()
    process.wait(10)
    assert hosts[0].wait_gone(process.host_pid)


def test_daemon_has_nothing_of_ours(hosts):
    pid = hosts[0].spawn_daemon(["/usr/bin/sleep", "60"], log=hosts.shared / "log", env={"A": "b"})
    outer = hosts[0].outer(pid)
    wait_until(lambda: os.readlink(f"/proc/{outer}/exe").endswith("sleep"), 5, "it runs")
    links = {fd: os.readlink(f"/proc/{outer}/fd/{fd}") for fd in os.listdir(f"/proc/{outer}/fd")}
    assert links == {"0": "/dev/null", "1": str(hosts.shared / "log"), "2": str(hosts.shared / "log")}
    stat = hosts[0].output(["cat", f"/proc/{pid}/stat"]).rpartition(")")[2].split()
    assert stat[1:4] == ["1", str(pid), str(pid)], "init is its parent, it leads its group and session"
    environment = set(open(f"/proc/{outer}/environ").read().strip("\0").split("\0"))
    assert {name.partition("=")[0] for name in environment} == {"PATH", "HOME", "LANG", "A"}
    hosts[0].kill(pid)
    assert hosts[0].wait_gone(pid)


@pytest.mark.parametrize("end", ["leaves", "raises", "killed", "interrupted"])
def test_nothing_is_left_behind(end):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(REPO / 'tools')!r})
from localhosts import Hosts
with Hosts(2) as hosts:
    hosts[0].spawn_daemon(["/usr/bin/sleep", "600"])
    hosts[1].popen(["/usr/bin/sleep", "600"])
    print(hosts[0].cgroup.name, hosts[0].init, hosts.shared, flush=True)
    if {end!r} == "raises": raise RuntimeError
    if {end!r} == "killed": os.kill(os.getpid(), signal.SIGKILL)
    if {end!r} == "interrupted": os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    name, init, shared = done.stdout.split()
    group = cgroup2_mount() / name
    # Of what was killed, the machine's init may keep the entry for a moment.
    wait_until(lambda: not group.exists(), 10, f"{group} is removed")
    wait_until(lambda: not os.path.exists(f"/proc/{init}/ns/pid") or not _alive(init), 10, "its init is gone")
    if end == "killed":
        os.rmdir(shared)  # the one thing that only the owner can remove
    assert not os.path.exists(shared)


def _alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_failed_start_says_which_program(hosts):
    with pytest.raises(HostError):
        Hosts(1, helper="/usr/bin/false").__enter__()


@pytest.mark.parametrize("case", rows(CASES + EITHER))
def test_victim_is_sound_without_a_move(pair, case):
    victim = pair.victim(case.victim, *case.arguments)
    victim.check_running()
    victim.finish()


def test_victim_tells_of_harm(pair):
    """The oracle sees one wrong byte: a check that never fails would prove nothing."""
    victim = pair.victim("memory", "--mb", "1", "--file", "{dir}/mapped")
    with open(victim.folder / "mapped", "r+b") as mapped:
        mapped.seek(10 * 4096 + 2047)
        mapped.write(b"\xee")
    wait_until(lambda: any(line.startswith("FAIL") for line in victim.lines()), 20, "it noticed")
    pair.victims.remove(victim)
    assert pair.a.wait_gone(victim.pid)
