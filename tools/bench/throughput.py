"""How fast memory goes over a link, beside iperf3 on the same link in the same run, and where the rest goes."""
import ledger
from figures import median, percent, ratio
from lab import GIB, Lab


def _name(case):
    tls, streams = case
    return f"{'TLS' if tls else 'plain'}, {streams} stream{'s' if streams > 1 else ''}"


def _measure(lab, moving, cases, rounds, seconds):
    """{case: {"memory", "link": bytes per second of round 0, "iperf", CPU ...: one figure per round}}.

    iperf3 runs right before each migration: how busy the machine is changes from second to second.
    """
    found = {case: {"memory": [], "link": [], "iperf": [], "source": [], "destination": [], "iperf_cpu": [], "wall": []} for case in cases}
    for _ in range(rounds):
        for case in cases:
            tls, streams = case
            rate, iperf_cpu = lab.iperf(streams, seconds)
            run = lab.migrate(moving, tls=tls, streams=streams)
            memory, link, took = run.first_round()
            source, destination = run.cpu_per_gib()
            for name, value in (("memory", memory / took), ("link", link / took), ("iperf", rate), ("source", source), ("destination", destination),
                                ("iperf_cpu", iperf_cpu), ("wall", took * GIB / memory)):
                found[case][name].append(value)
    return found


def _share(values, what):
    """Of what iperf3 reached right before."""
    return median([ratio(of, iperf) for of, iperf in zip(values[what], values["iperf"])])


def _table(bench, title, found, note=None):
    rows = []
    for case, values in found.items():
        iperf, memory, wall = median(values["iperf"]), median(values["memory"]), median(values["wall"])
        used = median(values["source"]) + median(values["destination"])
        rows.append([_name(case), memory / 1e9, iperf / 1e9, percent(_share(values, "memory")), percent(_share(values, "link")), wall,
                     median(values["source"]), median(values["destination"]), ratio(used, wall), median(values["iperf_cpu"])])
    bench.findings.table(title, ["", "memory GB/s", "iperf3 GB/s", "memory/iperf3", "link/iperf3", "s per GiB", "source CPU", "dest. CPU", "CPUs busy",
                                 "iperf3 CPU"], rows, note)
    bench.findings.raw(title, {_name(case): values for case, values in found.items()})


NOTE = ("memory: content of pages in round 0; link: what they were on the link, headers and compression included; CPU: seconds per GiB of memory, "
        "both ends of iperf3 together")


def _ledger(bench, lab, moving):
    """Where the time of both agents goes, by perf."""
    if not ledger.available():
        bench.findings.say("perf is not installed: what the agents do in that time is not known")
        return
    for tls in (False, True):
        found = ledger.take(lab, moving, tls)
        words = "TLS" if tls else "plain"
        if found is None:
            bench.findings.say("perf took no samples")
            return
        bench.findings.raw(f"ledger, {words}", found)
        bench.findings.table(f"What the agents' CPU time goes to, {words}, 1 stream: seconds per GiB", ["system call or object", "source", "destination"],
                             ledger.rows(found, 8 if bench.quick else 14), "by samples of perf, which itself takes some time")


def throughput(bench):
    """Round 0 of a migration beside iperf3."""
    cases = [(False, 1), (True, 1), (True, 4)] if bench.quick else [(False, 1), (False, 4), (True, 1), (True, 4)]
    rounds, seconds, size = (3, 1, 512) if bench.quick else (7, 1, 1024)
    with Lab(bench.mode) as lab:
        victim = lab.victim(memory_mib=size)
        cold = lab.migrate(victim, tls=False)
        memory, _, took = cold.first_round()
        found = _measure(lab, victim, cases, rounds, seconds)
        _table(bench, f"Incompressible memory, {size} MiB, unshaped (medians of {rounds})", found, NOTE)
        _ledger(bench, lab, victim)
        victim.finish()
    warm = median(found[(False, 1)]["memory"])
    bench.findings.say(f"first migration of all, into memory not touched before: {memory / took / 1e9:.2f} GB/s, {percent(memory / took / warm)} of the same later")
    if not bench.quick:
        with Lab(bench.mode) as lab:
            redis = lab.redis(size)
            found = _measure(lab, redis, cases, rounds, seconds)
            redis.finish()
        _table(bench, f"Memory of a redis-server with {size} MiB of values, unshaped (medians of {rounds})", found, NOTE)
    _shaped(bench, cases[:2] if bench.quick else cases)


def _shaped(bench, cases):
    size, rounds = (256, 2) if bench.quick else (512, 5)
    with Lab(bench.mode) as lab:
        lab.shape("1gbit")
        victim = lab.victim(memory_mib=size)
        found = _measure(lab, victim, cases, rounds, 2)
        victim.finish()
    title = f"Incompressible memory, {size} MiB, shaped to 1 Gbit/s (medians of {rounds})"
    _table(bench, title, found, NOTE)
    for case, values in found.items():
        bench.findings.goal(f"share of iperf3 on a link of 1 Gbit/s, {_name(case)}", 100 * _share(values, "memory"), 95, "%", at_most=False)
    if bench.quick:
        return
    with Lab(bench.mode) as lab:
        lab.shape("1gbit")
        redis = lab.redis(size)
        found = _measure(lab, redis, cases, rounds, 2)
        redis.finish()
    _table(bench, f"Memory of a redis-server with {size} MiB of values, shaped to 1 Gbit/s (medians of {rounds})", found, NOTE)
