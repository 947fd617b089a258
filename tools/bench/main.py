"""What ./bench runs once everything is built. See docs/benchmarks.md."""
import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import downtime  # noqa: E402
import moving  # noqa: E402
import parts  # noqa: E402
import throughput  # noqa: E402
from figures import BenchError, Findings  # noqa: E402
from lab import memory_available  # noqa: E402
from localhosts import HostError  # noqa: E402
from localhosts.redis_load import RedisError  # noqa: E402

SECTIONS = {
    "scan": parts.scan,
    "batch": parts.batch,
    "throughput": throughput.throughput,
    "memory": downtime.memory,
    "items": downtime.items,
    "slowdown": parts.tracked_writes,
    "rounds": moving.rounds,
    "redis": moving.redis,
    "large": moving.large,
    "agents": moving.agents,
}


class Bench:
    """What a section gets: how much to do, and where its findings go."""

    def __init__(self, options):
        self.quick, self.mode = options.quick, options.mode
        self.findings = Findings()


def parse():
    lines = "\n".join(f"  {name:<11} {run.__doc__.splitlines()[0]}" for name, run in SECTIONS.items())
    parser = argparse.ArgumentParser(prog="bench", description="Measures godwit on this machine, each figure beside one to compare it with.",
                                     epilog=f"sections:\n{lines}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="only these; all of them without")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions: four minutes at most")
    parser.add_argument("--json", metavar="FILE", help="write all that was measured there as well")
    parser.add_argument("--mode", choices=("pre-copy", "stop"), default="pre-copy", help="how processes are migrated (default pre-copy)")
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; the sections are {', '.join(SECTIONS)}")
    return options


def run(options):
    bench, failed = Bench(options), []
    bench.findings.describe(CPUs=os.cpu_count(), memory=f"{memory_available() / (1 << 30):.1f} GiB free", kernel=platform.release(),
                            load=f"{os.getloadavg()[0]:.1f}")
    for name in options.sections or SECTIONS:
        began = time.monotonic()
        bench.findings.begin(name, SECTIONS[name].__doc__.splitlines()[0])
        try:
            SECTIONS[name](bench)
        except (BenchError, HostError, RedisError, OSError, subprocess.SubprocessError) as error:
            bench.findings.say(f"FAILED: {error}")
            failed.append(name)
        bench.findings.say(f"took {time.monotonic() - began:.0f} s")
    bench.findings.summary()
    if options.json:
        bench.findings.write_json(options.json)
    for name in failed:
        print(f"bench: section {name} failed, see above", file=sys.stderr)
    return 1 if failed else 0


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the with blocks
    return run(parse())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
