"""What ./quickstart runs once everything is built: redis-server moves between two local hosts under load."""
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from localhosts import HostError, Hosts  # noqa: E402
from localhosts.hosts import REPO  # noqa: E402
from localhosts.redis_load import RedisError, WriteLoad, digest, fill, server_arguments, wait_for_server  # noqa: E402

GODWIT = REPO / "build/release/bin/godwit"
PORT, REDIS = 7467, 6379
BAR = 40


class Failed(Exception):
    """The demonstration did not work; the text says how."""


def serve(host, keys, log):
    """Starts the agent of the destination and returns once it listens."""
    agent = host.popen([GODWIT, "serve", "--listen", f"{host.address}:{PORT}", "--keys", keys / "destination"], stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    said = []
    for line in agent.stderr:
        log.write(line)
        said.append(line)
        if "listening on" in line:
            # From here on nobody reads the pipe line by line; a thread keeps it empty.
            threading.Thread(target=lambda: log.writelines(agent.stderr), daemon=True).start()
            return agent
    raise Failed("godwit serve did not start:\n" + "".join(said))


def migrate(host, pid, target, keys):
    command = [GODWIT, "migrate", "--tree", pid, "--to", f"{target.address}:{PORT}", "--keys", keys / "source", "--tcp-close", "--json"]
    done = host.run(command, timeout=100, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Failed(f"godwit migrate ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def print_report(report, gap_ms):
    """The rounds, and where the downtime went, as bars."""
    print(f"\n  {report['bytes_sent'] / 1e6:.0f} MB sent in {report['total_ms'] / 1000:.2f} s; downtime {report['downtime_ms']:.0f} ms "
          f"(a client saw {gap_ms:.0f} ms without an answer)\n")
    print("  Memory was copied in rounds, each of what was written during the one before:\n")
    most = max([*(r["bytes"] for r in report["rounds"]), 1])
    for r in report["rounds"]:
        name = "frozen" if r["frozen"] else f"round {r['round']}"
        print(f"  {name:<8} {r['bytes'] / 1e6:9.1f} MB {r['ms']:8.1f} ms  {'█' * round(BAR * r['bytes'] / most)}")
    print("\n  Where the downtime went:\n")
    phases = report["downtime_phases_ms"]
    longest = max([*phases.values(), 0.001])
    width = max(map(len, phases), default=0)
    for name, ms in phases.items():
        print(f"  {name:<{width}} {ms:9.1f} ms  {'█' * round(BAR * ms / longest)}")
    print()


def demonstrate(mebibytes):
    with Hosts(2) as hosts, open(REPO / "build/quickstart.log", "a", encoding="utf-8") as log:
        a, b = hosts
        keys = hosts.shared / "keys"
        subprocess.run([GODWIT, "keys", "init", keys], check=True, timeout=30, stdout=subprocess.DEVNULL)
        print(f"Two hosts: a at {a.address}, b at {b.address}, keys for both.")
        pid = a.spawn_daemon(server_arguments(REDIS), log=hosts.shared / "redis.log")
        here, there = (lambda: a.connect(REDIS)), (lambda: b.connect(REDIS))
        wait_for_server(here)
        keys_filled = fill(here, mebibytes << 20)
        before = digest(here, keys_filled)
        print(f"redis-server is process {pid} on a, holds {mebibytes} MiB, and is being written to.")
        agent = serve(b, keys, log)
        with WriteLoad([here, there]) as load:
            load.wait_for_writes(5000)
            print(f"\n  a# godwit migrate --tree {pid} --to {b.address}:{PORT} --tcp-close")
            load.longest_gap_s = 0
            report = migrate(a, pid, b, keys)
            load.wait_for_writes(5000)
            gap_ms = load.longest_gap_s * 1000
        print_report(report, gap_ms)
        if a.alive(pid) or not b.alive(pid):
            raise Failed("redis-server does not run on b alone")
        count = load.verify(there)
        if digest(there, keys_filled) != before:
            raise Failed("the data at rest changed on the way")
        print(f"redis-server is process {pid} on b. All {count} acknowledged writes are there; "
              f"{keys_filled} keys at rest have the same digest.")
        agent.terminate()
        agent.wait(15)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the with blocks
    try:
        demonstrate(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
    except (Failed, HostError, RedisError, OSError, subprocess.SubprocessError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
