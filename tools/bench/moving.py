"""What a migration does to the process while it goes on, to a redis-server, and to the memory of the agents."""
import threading
import time

from figures import BenchError, median, percent, ratio
from lab import GIB, Lab, memory_available
from localhosts.redis_load import Client, RedisError, STATIC_DATABASE, digest


def _rate(beats, begin, end):
    """Writes per second between two moments."""
    inside = [beat for beat in beats if begin <= beat[0] <= end]
    if len(inside) < 2:
        return float("nan")
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def _gap(beats, begin, end):
    """(start, end) of the longest time between two beats."""
    inside = [beat[0] for beat in beats if begin <= beat[0] <= end]
    return max(zip(inside, inside[1:]), key=lambda pair: pair[1] - pair[0], default=(begin, begin))


def rounds(bench):
    """Writes of a process while it is migrated, beside the same with iperf3 in place of the migration."""
    size, times = (512, 3) if bench.quick else (2048, 7)
    quiet, beside, during, after, gaps, downtimes = [], [], [], [], [], []
    with Lab(bench.mode) as lab:
        victim = lab.victim(memory_mib=size, dirty_pages=4096, dirty_per_second=0)
        for _ in range(times):
            begun = time.time()
            time.sleep(1)
            quiet.append(_rate(victim.beats(), begun, time.time()))
            begun = time.time()
            lab.iperf(1, 1)
            beside.append(_rate(victim.beats(), begun + 0.5, begun + 1.8))
            run = lab.migrate(victim, tls=False)
            time.sleep(1)
            beats = victim.beats()
            # Near the end: on a busy machine it may have waited for a CPU during the rounds as well.
            gap = _gap(beats, run.ended - run.downtime_ms / 1000 - 0.3, run.ended)
            during.append(_rate(beats, run.began, gap[0]))
            after.append(_rate(beats, gap[1], gap[1] + 1))
            gaps.append(1000 * (gap[1] - gap[0]))
            downtimes.append(run.downtime_ms)
        victim.finish()
    alone = median(quiet)
    rows = [[words, median(rates) / 1e6, percent(ratio(median(rates), alone)), percent(ratio(median(rates), median(beside)))]
            for words, rates in (("alone", quiet), ("beside iperf3", beside), ("during the rounds", during), ("in the first second after", after))]
    bench.findings.raw("writes per second", {"alone": quiet, "beside iperf3": beside, "during": during, "after": after, "gap ms": gaps, "downtime ms": downtimes})
    bench.findings.table(f"Writes of a process of {size} MiB over 16 MiB as fast as it can (medians of {times})", ["", "M/s", "of alone", "of beside iperf3"], rows,
                         "iperf3 shows what two busy processes beside it cost on this machine in any case")
    bench.findings.say(f"downtime: {median(downtimes):.1f} ms as reported, {median(gaps):.1f} ms as the process saw it (it looks every 2 ms)")


class Toucher:
    """Overwrites parts of redis values at a given rate from a thread of its own, and remembers what was acknowledged.

    Only keys from `first` on are written to, so that the others keep their digest. Goes to whichever host answers.
    """

    def __init__(self, hosts, port, first, count, per_second):
        self._connects = [lambda host=host: host.connect(port, timeout=0.5) for host in hosts]
        self._first, self._count, self._per_second = first, count, per_second
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.acknowledged = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(30)

    def place(self, number):
        """(key, offset, text) of the write of that number: page after page of value after value."""
        pages = 4  # of a value
        page = number % (self._count * pages)
        return f"static:{self._first + page // pages}", page % pages * 4096 + 16, b"%012d" % number

    def _work(self):
        client, which, batch = None, 0, 32
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if client is None:
                    client = Client(self._connects[which]())
                    client.command("SELECT", STATIC_DATABASE)
                # A number is written again until it was acknowledged.
                numbers = range(self.acknowledged, self.acknowledged + batch)
                client.send(b"".join(client.encode("SETRANGE", *self.place(n)) for n in numbers))
                for _ in numbers:
                    client.answer()
                    self.acknowledged += 1
                self._stop.wait(max(0.0, batch / self._per_second - (time.monotonic() - began)))
            except OSError:
                if client is not None:
                    client.close()
                client, which = None, (which + 1) % len(self._connects)
                self._stop.wait(0.005)
        if client is not None:
            client.close()

    def wait_for(self, more, timeout=30):
        goal, end = self.acknowledged + more, time.monotonic() + timeout
        while self.acknowledged < goal:
            if time.monotonic() > end:
                raise BenchError("redis-server acknowledges no more writes")
            time.sleep(0.01)

    def verify(self, connect):
        """The last acknowledged write of every place is there."""
        places = self._count * 4
        with Client(connect()) as client:
            client.command("SELECT", STATIC_DATABASE)
            for number in range(max(0, self.acknowledged - places), self.acknowledged):
                key, offset, text = self.place(number)
                found = client.command("GETRANGE", key, offset, offset + len(text) - 1)
                # One batch may have been written and not acknowledged, when the connection was cut or the load ended.
                if found != text and not found.isdigit():
                    raise BenchError(f"{key} holds {found!r}, must hold {text!r}")
                if found != text and (int(found) - number) % places != 0 or int(found) < number:
                    raise BenchError(f"{key} holds {found!r}, must hold {text!r}")


def redis(bench):
    """A redis-server under load: --mode pre-copy beside --mode stop."""
    size, times = 1024, 3 if bench.quick else 7
    found = {"stop": [], "pre-copy": []}
    with Lab(bench.mode) as lab:
        server = lab.redis(size)
        untouched = server.keys * 7 // 8
        before = digest(server.connect, untouched)
        pages_per_second = (size << 8) // 100
        with Toucher(lab.hosts, 6379, untouched, server.keys - untouched, pages_per_second) as load:
            for mode in [mode for _ in range(times) for mode in found]:
                load.wait_for(pages_per_second)
                found[mode].append(lab.migrate(server, mode=bench.mode if mode == "pre-copy" else mode))
            load.wait_for(100)
        load.verify(server.connect)
        if digest(server.connect, untouched) != before:
            raise BenchError("keys that nobody wrote to have changed")
        server.finish()
    rows = [[mode, median([run.downtime_ms for run in runs]), min(run.downtime_ms for run in runs), max(run.downtime_ms for run in runs),
             median([run.report["total_ms"] for run in runs]), median([len(run.report["rounds"]) for run in runs]),
             median([run.report["bytes_sent"] / 1e6 for run in runs])] for mode, runs in found.items()]
    stop, pre_copy = rows[0][1], rows[1][1]
    bench.findings.raw("reports", {mode: [run.report for run in runs] for mode, runs in found.items()})
    bench.findings.table(f"redis-server of {size} MiB, 1 % of its pages written per second (medians of {times})",
                         ["mode", "downtime ms", "least", "most", "total ms", "rounds", "MB sent"], rows,
                         "every acknowledged write and the digest of all other keys were checked at the end")
    bench.findings.goal("downtime of pre-copy as a share of stop", ratio(pre_copy, stop), 1 / 20, "")


def large(bench):
    """64 GiB mapped, 8 GiB of it touched (1 GiB with --quick)."""
    reserve, touched = (64, 1024) if bench.quick else (64, 8192)
    if memory_available() < (2 * touched << 20) + GIB:
        bench.findings.say("left out: two copies do not fit in memory now")
        return
    with Lab(bench.mode) as lab:
        victim = lab.victim(memory_mib=touched, reserve_gib=reserve, dirty_pages=1024, dirty_per_second=20000)
        run = lab.migrate(victim)
        victim.finish()
    memory, _, took = run.first_round()
    bench.findings.raw("report", run.report)
    bench.findings.say(f"{reserve} GiB mapped, {touched / 1024:.0f} GiB touched: moved in {run.report['total_ms'] / 1000:.1f} s at {memory / took / 1e9:.2f} GB/s in "
                       f"round 0, downtime {run.downtime_ms:.1f} ms; all of it checked at the destination")


def agents(bench):
    """Most memory that the agents ever hold, against the size of what they move."""
    sizes = [64, 1024] if bench.quick else [64, 1024, 4096]
    rows, raw = [], {}
    for size in sizes:
        with Lab(bench.mode) as lab:
            victim = lab.victim(memory_mib=size, dirty_pages=1024, dirty_per_second=20000)
            runs = [lab.migrate(victim, streams=streams) for streams in ((1,) if bench.quick else (1, 4))]
            victim.finish()
        raw[size] = [{"source": run.source.peak_kb, "destination": run.destination.peak_kb} for run in runs]
        rows.append([str(size), *(peak / 1024 for run in runs for peak in (run.source.peak_kb, run.destination.peak_kb))])
    header = ["MiB moved", "source", "destination", *([] if bench.quick else ["source, 4 streams", "destination, 4 streams"])]
    bench.findings.raw("VmHWM in KiB", raw)
    bench.findings.table("Most memory held by the agents, MiB (VmHWM)", header, rows)
    for column, name in enumerate(header[1:], 1):
        grown = (rows[-1][column] - rows[0][column]) / (sizes[-1] - sizes[0]) * 1024
        bench.findings.say(f"{name}: {grown:.2f} MiB more for each GiB moved")
    threads = 1000 if bench.quick else 3000
    with Lab(bench.mode) as lab:
        victim = lab.victim(memory_mib=16, threads=threads)
        run = lab.migrate(victim, options=["--downtime-limit", 20000] if bench.mode == "pre-copy" else [])
        victim.finish()
    more = [(peak - least) / 1024 for peak, least in zip((run.source.peak_kb, run.destination.peak_kb), (raw[sizes[0]][0]["source"], raw[sizes[0]][0]["destination"]))]
    bench.findings.say(f"with {threads} threads the source holds {more[0]:.1f} MiB more, the destination {more[1]:.1f} MiB: {1024 * more[0] / threads:.1f} and "
                       f"{1024 * more[1] / threads:.1f} KiB for each")
