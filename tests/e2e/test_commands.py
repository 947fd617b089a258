"""Bad input: one clear line, one hint, the right exit code, and the program runs on."""
import os
import shutil
import socket
import subprocess
import threading

import pytest

from harness import DONE, FAILED, GODWIT, NETWORK, PORT, STATE, UNSUPPORTED, USAGE, wait_until


@pytest.fixture
def victim(pair):
    return pair.victim("events")


def check_message(outcome):
    """One line that says what is wrong, and a hint; no dump of anything internal."""
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    assert lines, "nothing was said"
    assert not any(word in outcome.stderr for word in ("terminate called", "Segmentation", "core dumped")), outcome.stderr
    assert max(map(len, lines)) < 600, outcome.stderr
    assert "hint:" in outcome.stderr, f"no hint: {outcome.stderr}"
    return outcome


# ---- usage ----

@pytest.mark.smoke
@pytest.mark.parametrize("arguments", [
    [], ["fly"], ["migrate"], ["migrate", "--tree", "x", "--to", "10.77.0.2:1", "--insecure"], ["migrate", "--tree", "5"],
    ["migrate", "--tree", "5", "--to", "10.77.0.2", "--insecure"], ["migrate", "--tree", "5", "--to", "10.77.0.2:99999", "--insecure"],
    ["migrate", "--tree", "-5", "--to", "10.77.0.2:7467", "--insecure"], ["migrate", "--tree", "5", "--to", "10.77.0.2:7467", "--mode", "fly", "--insecure"],
    ["serve"], ["serve", "--listen", "nowhere", "--insecure"], ["keys"], ["check"], ["migrate", "--tree", "5", "--to", "10.77.0.2:7467", "--unknown"],
    *(["migrate", "--tree", "5", "--to", "10.77.0.2:7467", "--insecure", *bad] for bad in (
        ["--downtime-limit", "0.5"], ["--max-rounds", "0"], ["--streams", "17"], ["--compress", "gzip"], ["--tracker", "guess"],
        ["--mode", "stop", "--force"])),
], ids=lambda a: " ".join(a) or "nothing")
def test_bad_usage_exits_two(pair, arguments):
    assert check_message(pair.godwit(pair.a, *arguments, timeout=20).expect(USAGE)).stdout == ""


@pytest.mark.parametrize("arguments", [["--help"], ["migrate", "--help"], ["serve", "--help"], ["--version"]], ids=" ".join)
def test_help_goes_to_standard_output(pair, arguments):
    assert "godwit" in pair.godwit(pair.a, *arguments, timeout=20).expect(DONE).stdout


def test_neither_keys_nor_insecure_is_refused(pair, victim):
    check_message(pair.send(victim.pid, pair.a, security=[]).expect(USAGE)).says("--keys|--insecure")
    victim.check_running()


def test_insecure_says_so_loudly(pair, victim):
    server = pair.serve(pair.b, options=["--insecure"])
    pair.send(victim.pid, pair.a, security=["--insecure"]).expect(DONE).says("insecure")
    assert "insecure" in server.text().lower()
    victim.host = pair.b
    victim.check_running()
    pair.stop_serving(pair.b)


@pytest.mark.smoke
def test_unix_socket_of_root_needs_no_keys(pair, victim):
    path = f"unix:{pair.shared}/agent.sock"
    pair.serve(pair.b, options=[], listen=path)
    pair.send(victim.pid, pair.a, to=path, security=[]).expect(DONE)
    victim.host = pair.b
    victim.check_running()
    pair.stop_serving(pair.b)
    assert not (pair.shared / "agent.sock").exists(), "the agent left its socket behind"


def test_unix_socket_is_closed_to_others(pair):
    pair.serve(pair.b, options=[], listen=f"unix:{pair.shared}/agent.sock")
    assert (pair.shared / "agent.sock").stat().st_mode & 0o077 == 0
    pair.stop_serving(pair.b)


def test_keys_are_not_overwritten(pair):
    folder = pair.shared / "keys"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert len(before) >= 4 and all(p.stat().st_mode & 0o077 == 0 for p in before)
    check_message(pair.godwit(pair.a, "keys", "init", folder).expect(FAILED, USAGE))
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- the other end ----

@pytest.mark.smoke
def test_dead_address(pair, victim):
    check_message(pair.send(victim.pid, pair.a, to=f"10.77.0.9:{PORT}", timeout=60).expect(NETWORK)).says(r"10\.77\.0\.9")
    victim.check_running()


def test_unresolvable_name(pair, victim):
    check_message(pair.send(victim.pid, pair.a, to="no-such-host.invalid:7467").expect(NETWORK, USAGE)).says("no-such-host")
    victim.check_running()


@pytest.mark.smoke
def test_wrong_port(pair, victim):
    check_message(pair.send(victim.pid, pair.a, to=f"{pair.b.address}:7999").expect(NETWORK)).says("7999")
    victim.check_running()


class Foreigner(threading.Thread):
    """Something that is not godwit: accepts, says what it was told to, and waits or closes."""

    def __init__(self, host, port, words, close):
        super().__init__(daemon=True)
        with host.network():
            self.listener = socket.create_server((host.address, port))
        self.listener.settimeout(60)
        self.words, self.close_at_once, self.peers = words, close, []
        self.start()

    def run(self):
        try:
            while True:
                peer, _ = self.listener.accept()
                self.peers.append(peer)
                peer.sendall(self.words)
                if self.close_at_once:
                    peer.close()
        except OSError:
            pass

    def end(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for peer in self.peers:
            peer.close()
        self.join(10)


@pytest.mark.limit(120)
@pytest.mark.parametrize("security", ["keys", "insecure"])
@pytest.mark.parametrize("words, close", [
    (b"SSH-2.0-OpenSSH_9.2\r\n", False), (b"HTTP/1.1 400 Bad Request\r\n\r\n", True), (b"", True), (os.urandom(4096), True), (b"\xff" * 4096, False),
], ids=["ssh", "http", "closes", "noise", "ones"])
def test_foreign_peer(pair, victim, words, close, security):
    foreigner = Foreigner(pair.b, 7555, words, close)
    try:
        outcome = pair.send(victim.pid, pair.a, to=f"{pair.b.address}:7555", timeout=60,
                            security=["--insecure"] if security == "insecure" else None)
        check_message(outcome.expect(NETWORK)).says(r"10\.77\.0\.2")
    finally:
        foreigner.end()
    victim.check_running()


@pytest.mark.limit(120)
def test_silent_peer_is_given_up(pair, victim):
    foreigner = Foreigner(pair.b, 7556, b"", False)
    try:
        check_message(pair.send(victim.pid, pair.a, to=f"{pair.b.address}:7556", timeout=90).expect(NETWORK))
    finally:
        foreigner.end()
    victim.check_running()


@pytest.mark.smoke
@pytest.mark.parametrize("security", ["insecure", "foreign keys", "missing keys"])
def test_without_a_valid_certificate(pair, victim, security):
    server = pair.serving(pair.b)
    if security == "foreign keys":
        pair.make_keys("foreign-keys")
    arguments = {"insecure": ["--insecure"], "foreign keys": pair.security(pair.a, "foreign-keys"),
                 "missing keys": ["--keys", pair.shared / "nothing"]}[security]
    expected = (NETWORK,) if security != "missing keys" else (FAILED, USAGE)
    check_message(pair.send(victim.pid, pair.a, security=arguments, timeout=60).expect(*expected))
    victim.check_running()
    assert server.process.poll() is None, "the agent ended because of a stranger"
    pair.migrate(victim)  # and still serves whoever is allowed to


def test_strangers_do_not_end_the_agent(pair, victim):
    server = pair.serving(pair.b)
    for words in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), os.urandom(10000)):
        with pair.a.connect(PORT, pair.b.address) as stranger:
            try:
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
            except OSError:
                pass
    assert server.process.poll() is None
    pair.migrate(victim)


def test_silent_strangers_do_not_keep_others_out(pair, victim):
    pair.serving(pair.b)
    silent = [pair.a.connect(PORT, pair.b.address) for _ in range(5)]
    pair.migrate(victim)
    for one in silent:
        one.close()


def test_address_in_use(pair):
    pair.serving(pair.b)
    with pair.b.popen([GODWIT, "serve", "--listen", f"{pair.b.address}:{PORT}", *pair.security(pair.b), "--state-dir", "/run/other"],
                      stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as second:
        try:
            _, text = second.communicate(timeout=20)
        finally:
            second.kill()
        assert second.returncode in (FAILED, NETWORK) and str(PORT) in text, text


# ---- the tree ----

@pytest.mark.smoke
def test_process_that_is_gone(pair):
    pair.serving(pair.b)
    check_message(pair.send(9999, pair.a).expect(FAILED, UNSUPPORTED)).says("9999")


def test_process_one(pair):
    pair.serving(pair.b)
    check_message(pair.send(1, pair.a).expect(UNSUPPORTED)).says(r"\b1\b")
    assert pair.a.output(["echo", "alive"]) == "alive\n"


def test_kernel_thread(pair):
    # The hosts have PID namespaces, where there is none: this one runs outside.
    kthread = next((int(p) for p in os.listdir("/proc") if p.isdigit() and _is_kernel_thread(p)), None)
    if kthread is None:
        pytest.skip("kernel: no kernel thread is visible")
    done = subprocess.run([GODWIT, "check", "--tree", str(kthread)], capture_output=True, text=True, timeout=20)
    assert done.returncode == UNSUPPORTED and "kernel" in done.stderr.lower(), done.stderr


def _is_kernel_thread(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[6]) & 0x00200000
    except OSError:
        return False


@pytest.mark.parametrize("level", ["parent", "grandparent"])
def test_own_ancestor(pair, level):
    pair.serving(pair.b)
    migrate = [str(GODWIT), "migrate", "--to", f"{pair.b.address}:{PORT}", "--mode", "stop", *pair.security(pair.a), "--state-dir", STATE, "--tree"]
    inner = f"{' '.join(migrate)} $$; echo code $?"
    if level == "grandparent":
        inner = f"A=$$; sh -c '{' '.join(migrate)} '$A'; echo code $?'; true"
    done = pair.a.run(["sh", "-c", inner], capture_output=True, text=True, timeout=60)
    assert f"code {UNSUPPORTED}" in done.stdout, done.stdout + done.stderr
    assert "ancestor" in done.stderr or "parent" in done.stderr, done.stderr


def test_pid_in_use_at_the_destination(pair, victim):
    pair.serving(pair.b)
    occupant = next_pid(pair, pair.b, victim.pid)
    check_message(pair.send(victim.pid, pair.a).expect(UNSUPPORTED)).says(rf"\b{victim.pid}\b")
    victim.check_running()
    assert pair.b.alive(occupant)
    pair.b.kill(occupant)
    assert pair.b.wait_gone(occupant)


def next_pid(pair, host, wanted):
    """Starts a program in a host under a process id of our choosing."""
    script = f"echo {wanted - 1} > /proc/sys/kernel/ns_last_pid; exec setsid sleep 100 >/dev/null 2>&1 </dev/null & echo $!"
    pid = int(host.output(["sh", "-c", script]))
    assert pid == wanted, f"got {pid}, wanted {wanted}"
    wait_until(lambda: host.alive(pid), 5, "the occupant runs")
    # Go on far away, so that later programs of this host do not meet those of the other one.
    host.output(["sh", "-c", "echo 14000 > /proc/sys/kernel/ns_last_pid"])
    return pid


# ---- files there ----

@pytest.fixture
def own_file(pair):
    """A victim that maps a file which lies on the shared file system; and the host's way to have another one there."""
    victim = pair.victim("memory", "--mb", "1", "--file", "{dir}/mapped")
    return victim, victim.folder / "mapped"


@pytest.mark.parametrize("there", ["missing", "another file"])
def test_file_missing_or_different_at_the_destination(pair, own_file, there):
    victim, path = own_file
    pair.stop_serving(pair.b)
    # The destination sees a folder of its own where the source has the file.
    pair.b.output(["mount", "-t", "tmpfs", "tmpfs", str(path.parent)])
    try:
        if there == "another file":
            pair.b.output(["sh", "-c", f"head -c {path.stat().st_size} /dev/zero > {path}"])
        pair.serve(pair.b)
        check_message(pair.send(victim.pid, pair.a).expect(UNSUPPORTED)).says("mapped")
        victim.check_running()
    finally:
        pair.b.output(["umount", str(path.parent)])
    pair.migrate(victim)
    victim.finish()


def test_different_executable_at_the_destination(pair):
    victim = pair.victim("sleep")
    program = f"/proc/{pair.a.outer(victim.pid)}/exe"
    path = os.readlink(program)
    pair.stop_serving(pair.b)
    other = pair.shared / "other-program"
    shutil.copy("/usr/bin/true", other)
    pair.b.output(["mount", "--bind", str(other), path])
    try:
        pair.serve(pair.b)
        check_message(pair.send(victim.pid, pair.a).expect(UNSUPPORTED)).says(os.path.basename(path))
        victim.check_running()
    finally:
        pair.b.output(["umount", path])


@pytest.mark.parametrize("where", ["a", "b"])
def test_full_disk_for_the_state_directory(pair, victim, where):
    host = pair.a if where == "a" else pair.b
    pair.stop_serving(host)
    host.output(["mkdir", "-p", STATE])
    host.output(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=4", "tmpfs", STATE])
    try:
        host.run(["sh", "-c", f"head -c 4096 /dev/zero > {STATE}/ballast"], timeout=20)
        pair.serving(pair.b)
        check_message(pair.send(victim.pid, pair.a).expect(FAILED, UNSUPPORTED)).says("space|full|ENOSPC")
        victim.check_running()
    except AssertionError as error:
        if "serve ended with 1" not in str(error):
            raise  # that it does not even start is as good
    finally:
        pair.stop_serving(pair.b)
        host.output(["umount", STATE])
    pair.migrate(victim)


def test_users_that_may_not_be_started(pair):
    victim = pair.victim("credentials")
    pair.serve(pair.b, options=[*pair.security(pair.b), "--allow", "0,33"])
    check_message(pair.send(victim.pid, pair.a).expect(UNSUPPORTED)).says("65534|nobody")
    victim.check_running()
    pair.serve(pair.b)
    pair.migrate(victim)
    victim.finish()


def test_program_that_ends_while_it_is_moved_away_is_an_ordinary_failure(pair):
    victim = pair.victim("events")
    pair.a.kill(victim.pid)
    pair.serving(pair.b)
    check_message(pair.send(victim.pid, pair.a).expect(FAILED, UNSUPPORTED))
