"""Downtime against what a process has: memory, threads, mappings, descriptors."""
from figures import median, slope
from lab import GIB, Lab, memory_available

DIRTY = {"dirty_pages": 1024, "dirty_per_second": 50000}  # 4 MiB, all of it written within 20 ms


def _runs(bench, count, options):
    """`count` migrations, there and back, of one victim, after one that warms the memory of both hosts.

    The hosts are new ones: a thread's number must be free where it comes to.
    """
    with Lab(bench.mode) as lab:
        victim = lab.victim(**options)
        runs = [lab.migrate(victim) for _ in range(1 + count)][1:]
        victim.finish()
    return runs


def _phases(runs):
    """Medians of the phases that downtime consists of, in their order."""
    return {name: median([run.report["downtime_phases_ms"].get(name, 0.0) for run in runs]) for name in runs[0].report["downtime_phases_ms"]}


def _table(bench, title, what, found):
    """found: {label: runs}. The phases as columns, shortened to those that matter in some row."""
    phases = {label: _phases(runs) for label, runs in found.items()}
    names = [name for name in next(iter(phases.values())) if any(row.get(name, 0) >= 0.5 for row in phases.values())]
    rows = [[label, median([run.downtime_ms for run in runs]), min(run.downtime_ms for run in runs), max(run.downtime_ms for run in runs),
             *(phases[label].get(name, 0.0) for name in names)] for label, runs in found.items()]
    bench.findings.table(title, [what, "downtime ms", "least", "most", *names], rows, "then the phases of it, medians; those below 0.5 ms are left out")
    bench.findings.raw(title, {str(label): [run.report for run in runs] for label, runs in found.items()})


def memory(bench):
    """Downtime against memory with a dirty set that stays the same."""
    sizes = [64, 512, 1024] if bench.quick else [64, 256, 1024, 2048, 4096, 8192]
    count, found = 2 if bench.quick else 5, {}
    for size in sizes:
        if memory_available() < (2 * size << 20) + GIB:
            bench.findings.say(f"{size} MiB is left out: two copies of it do not fit in memory now")
            continue
        found[size] = _runs(bench, count, {"memory_mib": size, **DIRTY})
    _table(bench, "Downtime against memory, 4 MiB of it written all the time", "MiB", found)
    rise, at_zero = slope((size / 1024, run.downtime_ms) for size, runs in found.items() for run in runs)
    bench.findings.say(f"least squares: {at_zero:.1f} ms + {rise:.2f} ms per GiB")
    bench.findings.goal("downtime per GiB of memory", rise, 1.0, "ms per GiB")


def items(bench):
    """Downtime against threads, mappings and descriptors."""
    # Process ids of the second host start 10,000 after those of the first: more threads than this would meet its agent's.
    counts = {"threads": [10, 100, 1000] if bench.quick else [10, 100, 1000, 3000, 9000],
              "mappings": [10, 1000] if bench.quick else [10, 100, 1000, 10000],
              "descriptors": [10, 1000] if bench.quick else [10, 100, 1000, 10000]}
    for what, numbers in counts.items():
        found = {n: _runs(bench, 2 if bench.quick else 5, {"memory_mib": 16, what: n}) for n in numbers}
        _table(bench, f"Downtime against {what}", what, found)
        rise, at_zero = slope((n, run.downtime_ms) for n, runs in found.items() for run in runs)
        bench.findings.say(f"least squares: {at_zero:.1f} ms + {1000 * rise:.1f} µs for each")
