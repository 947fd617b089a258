"""Downtime against what a process has: memory, threads, mappings, descriptors."""
from figures import median, percent, ratio, slope
from lab import GIB, Lab, memory_available

DIRTY = {"dirty_pages": 1024, "dirty_per_second": 50000}  # 4 MiB, all of it written within 20 ms


def _runs(bench, count, victim_options, options=(), stops=0):
    """(`count` migrations there and back of one victim, `stops` more in mode stop), after one that warms the memory of both hosts.

    The hosts are new ones: a thread's number must be free where it comes to.
    """
    with Lab(bench.mode) as lab:
        victim = lab.victim(**victim_options)
        runs = [lab.migrate(victim, options=options) for _ in range(1 + count)][1:]
        stopped = [lab.migrate(victim, mode="stop") for _ in range(stops)]
        victim.finish()
    return runs, stopped


def _phase(runs, name):
    return median([run.report["downtime_phases_ms"].get(name, 0.0) for run in runs])


def _downtime(runs):
    return median([run.downtime_ms for run in runs])


def _table(bench, title, what, found, each, unit):
    """found: {how many: runs}. The phases that matter in some row as columns; below, how all of it rises with `what`.

    Returns the rise of the downtime, in milliseconds for each.
    """
    names = [name for name in next(iter(found.values()))[0].report["downtime_phases_ms"] if any(_phase(runs, name) >= 0.3 for runs in found.values())]
    rows = [[many, _downtime(runs), min(run.downtime_ms for run in runs), max(run.downtime_ms for run in runs), *(_phase(runs, name) for name in names)]
            for many, runs in found.items()]
    # Column by column, of medians: one run that met a busy machine must not tilt the line.
    rises = [slope((row[0] / each, row[column]) for row in rows)[0] for column in range(1, len(rows[0]))]
    rows.append([f"rise, {unit}", *rises])
    bench.findings.table(title, [what, "downtime ms", "least", "most", *names], rows,
                         "medians, then the phases that downtime consists of, but those below 0.3 ms; rise: least squares through the medians")
    bench.findings.raw(title, {str(many): [run.report for run in runs] for many, runs in found.items()})
    return rises[0]


def memory(bench):
    """Downtime against memory, with a dirty set that stays the same."""
    sizes = [64, 1024, 2048] if bench.quick else [64, 256, 1024, 2048, 4096, 8192]
    found, rows = {}, []
    for size in sizes:
        if memory_available() < (2 * size << 20) + GIB:
            bench.findings.say(f"{size} MiB is left out: two copies of it do not fit in memory now")
            continue
        count = 3 if bench.quick else 7 if size <= 1024 else 4
        found[size], stopped = _runs(bench, count, {"memory_mib": size, **DIRTY}, stops=1)
        rows.append([size, _downtime(found[size]), _downtime(stopped), percent(ratio(_downtime(found[size]), _downtime(stopped)))])
    rise = _table(bench, "Downtime against memory, 4 MiB of it written all the time", "MiB", found, 1024, "ms per GiB")
    bench.findings.table("The same beside mode stop", ["MiB", f"{bench.mode}, ms", "stop, ms", "share"], rows)
    bench.findings.goal("downtime per GiB of memory", rise, 1.0, "ms per GiB")


def items(bench):
    """Downtime against threads, mappings and descriptors."""
    # Process ids of the second host start 10,000 after those of the first: more threads than this would meet its agent's.
    counts = {"threads": [10, 100, 1000] if bench.quick else [10, 100, 1000, 3000, 9000],
              "mappings": [10, 1000] if bench.quick else [10, 100, 1000, 10000],
              "descriptors": [10, 1000] if bench.quick else [10, 100, 1000, 10000]}
    # Ten thousand of them take longer than the limit that is usual.
    options = ["--downtime-limit", 20000] if bench.mode == "pre-copy" else []
    for what, numbers in counts.items():
        found = {n: _runs(bench, 2 if bench.quick else 5, {"memory_mib": 16, what: n}, options)[0] for n in numbers}
        _table(bench, f"Downtime against {what}", what, found, 1000, "ms per 1000")
