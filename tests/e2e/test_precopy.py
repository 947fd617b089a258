"""Memory is copied in rounds while the program runs: nothing of it may be lost, whatever the program does meanwhile."""
import os
import re
from pathlib import Path

import pytest

from harness import DONE, FAILED, STATE, UNSUPPORTED, USAGE, differences, picture, wait_until

MIB = 1 << 20
# A limit that is met however busy the machine is.
EASY = ("--downtime-limit", "60000")


def rounds(count):
    """So many rounds of the running program, whatever it dirties: the limit is out of reach, the switch is made all the same."""
    return ("--downtime-limit", "1", "--max-rounds", str(count), "--force")


def check_rounds(report, count=None):
    """Numbers of a report that must fit together; `count` rounds of the running program if given."""
    found = report["rounds"]
    assert report["mode"] == "pre-copy" and report["tracker"], report
    assert [r["round"] for r in found] == list(range(len(found))), found
    assert [r["frozen"] for r in found] == [False] * (len(found) - 1) + [True], found
    assert count is None or len(found) == count + 1, found
    assert sum(r["bytes"] for r in found) <= report["bytes_sent"], report
    return found


# ---- the oracle ----

def oracle(pair, times, *arguments, options=rounds(3)):
    victim = pair.victim("oracle", "--file", "{dir}/file", *arguments)
    for _ in range(times):
        for _ in ("there", "back"):
            check_rounds(pair.migrate(victim, *options, mode="pre-copy").report)
    victim.finish()


ORACLES = [
    pytest.param(("--writers", "4", "--mb", "4"), rounds(3), id="as-fast-as-it-can"),
    pytest.param(("--writers", "8", "--mb", "1", "--move", "--pages-per-second", "3000"), rounds(4), id="moving"),
    pytest.param(("--writers", "4", "--mb", "2", "--move", "--protect", "--pages-per-second", "2000"), rounds(3), id="protected"),
    pytest.param(("--writers", "4", "--mb", "4", "--pages-per-second", "500"), EASY, id="converging"),
]


@pytest.mark.smoke
@pytest.mark.limit(120)
@pytest.mark.parametrize("arguments, options", ORACLES)
def test_oracle_sees_one_edge_wherever_it_runs(pair, arguments, options):
    oracle(pair, 5, *arguments, options=options)


SHARED = [
    pytest.param((), rounds(3), id="shared"),
    pytest.param(("--size",), rounds(3), id="shared-sizes"),
    pytest.param(("--seal", "--readers"), EASY, id="shared-sealed"),
    pytest.param(("--file", "/dev/shm/region"), rounds(3), id="shared-file"),
]


@pytest.mark.smoke
@pytest.mark.parametrize("arguments, options", SHARED)
def test_shared_memory_is_one_object_whoever_writes_it_and_how(pair, arguments, options):
    victim = pair.victim("shared", *arguments)
    for _ in range(3):
        for _ in ("there", "back"):
            check_rounds(pair.migrate(victim, *options, mode="pre-copy").report)
    victim.finish()


@pytest.mark.slow
@pytest.mark.limit(3600)
@pytest.mark.parametrize("arguments, options", ORACLES)
def test_oracle_moves_there_and_back_two_hundred_times(pair, arguments, options):
    oracle(pair, 200, *arguments, options=options)


@pytest.mark.parametrize("compress", ["none", "lz4", "auto"])
@pytest.mark.parametrize("streams", ["1", "4"])
def test_streams_and_compression_lose_no_page(pair, streams, compress):
    oracle(pair, 1, "--writers", "4", "--mb", "8", "--pages-per-second", "20000", options=(*rounds(2), "--streams", streams, "--compress", compress))


# ---- a layout that changes ----

def reshaped(pair, times, *arguments):
    victim = pair.victim("mappings", "--file", "{dir}/file", *arguments)
    for _ in range(times):
        for _ in ("there", "back"):
            check_rounds(pair.migrate(victim, *rounds(4), mode="pre-copy").report, 4)
    victim.finish()


SHAPES = [pytest.param((), id="three-threads"), pytest.param(("--threads", "6", "--rest-ms", "0"), id="six-threads-without-rest")]


@pytest.mark.smoke
@pytest.mark.limit(120)
@pytest.mark.parametrize("arguments", SHAPES)
def test_layout_that_changes_all_the_time(pair, arguments):
    reshaped(pair, 5, *arguments)


@pytest.mark.slow
@pytest.mark.limit(3600)
@pytest.mark.parametrize("arguments", SHAPES)
def test_layout_that_changes_all_the_time_two_hundred_times(pair, arguments):
    reshaped(pair, 100, *arguments)


@pytest.mark.limit(120)
@pytest.mark.parametrize("times", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.limit(1800)])])
def test_threads_are_born_and_die_in_every_round(pair, times):
    victim = pair.victim("churn-threads", "--threads", "12")
    for _ in range(times):
        for _ in ("there", "back"):
            pair.migrate(victim, *rounds(3), mode="pre-copy")
    victim.finish()


@pytest.mark.smoke
def test_maps_are_the_same_after_rounds(pair):
    victim = pair.victim("memory", "--mb", "4", "--file", "{dir}/mapped")
    before = picture(pair.a, victim.pid)
    pair.migrate(victim, *rounds(4), mode="pre-copy")
    changed = differences(before, picture(pair.b, victim.pid), ignore=(r"fd [345]$", "status SigQ"))
    assert not changed, "\n".join(changed)
    victim.finish()


# ---- reservations ----

@pytest.mark.smoke
def test_reservations_cost_nothing(pair):
    victim = pair.victim("reserve")
    for _ in ("there", "back"):
        report = pair.migrate(victim, *rounds(3), mode="pre-copy").report
        found = check_rounds(report, 3)
        # 64 pages committed, at most 400 scattered private ones and 400 shared, and the program itself.
        assert sum(r["pages"] + r["zero_pages"] for r in found[:1]) < 3000, found
        assert sum(r["pages"] + r["zero_pages"] for r in found[1:]) < 3000, found
        assert report["bytes_sent"] < 16 * MIB, report
    victim.finish()


@pytest.mark.slow
@pytest.mark.limit(600)
def test_eight_gigabytes_touched_of_much_more(pair):
    victim = pair.victim("reserve", "--touch-mb", "8192", patience=180)
    report = pair.migrate(victim, *EASY, "--streams", "2", mode="pre-copy", timeout=400).report
    assert report["rounds"][0]["pages"] >= 2 << 20, report["rounds"]
    print(f"8 GiB: {report['total_ms']:.0f} ms in all, downtime {report['downtime_ms']:.0f} ms, rounds {report['rounds']}")
    victim.finish()


# ---- when to switch over ----

@pytest.mark.smoke
def test_what_does_not_converge_is_left_where_it_is(pair):
    victim = pair.victim("dirty", "--mb", "64")
    pair.serving(pair.b)
    outcome = pair.send(victim.pid, pair.a, "--downtime-limit", "1", "--max-rounds", "3", mode="pre-copy").expect(FAILED)
    outcome.says("does not converge", r"[\d.]+ [MG]B/s", "hint:", "--force", "--downtime-limit", rf"\b{victim.pid}\b")
    report = outcome.report
    assert [r["frozen"] for r in report["rounds"]] == [False] * 3, report
    assert report["predicted_downtime_ms"] > 1 and report["dirty_bytes_per_second"] > 0 and report["link_bytes_per_second"] > 0, report
    victim.check_running()
    pair.check_clean()
    pair.migrate(victim, mode="stop")
    victim.finish()


def test_force_switches_over_though_the_limit_is_missed(pair):
    victim = pair.victim("dirty", "--mb", "32")
    report = pair.migrate(victim, *rounds(2), mode="pre-copy").report
    check_rounds(report, 2)
    assert report["downtime_ms"] > report["downtime_limit_ms"] == 1
    victim.finish()


def test_one_round_is_enough_where_the_limit_allows_it(pair):
    victim = pair.victim("reserve", "--gib", "2", "--touch-mb", "8")
    report = pair.migrate(victim, *EASY, "--max-rounds", "1", mode="pre-copy").report
    found = check_rounds(report, 1)
    assert found[0]["pages"] >= 2048 > 1000 > found[1]["pages"], found
    victim.finish()


def test_downtime_is_learned_by_the_count_that_predicts_it(pair):
    """Its tasks and descriptors, which are gone when it is learned, and its mappings, which no scan has told when it is predicted."""
    victim = pair.victim("threads", "--threads", "200")
    root = Path(f"/proc/{victim.host.outer(victim.pid)}")
    count = len((root / "maps").read_text().splitlines()) + len(os.listdir(root / "fd")) + len(os.listdir(root / "task"))
    pair.migrate(victim, *EASY, mode="pre-copy")
    learned = pair.a.output(["sh", "-c", f"cat {STATE}/calibration-*"]).split()
    assert learned[0] == "items" and abs(int(learned[1]) - count) < 20, (learned, count)
    victim.finish()


def test_each_round_sends_what_the_last_one_dirtied(pair):
    victim = pair.victim("dirty", "--mb", "64", "--mb-per-second", "8")
    found = check_rounds(pair.migrate(victim, *rounds(4), mode="pre-copy").report, 4)
    assert found[0]["pages"] >= 64 * 256, found
    assert all(r["pages"] + r["zero_pages"] < found[0]["pages"] / 4 for r in found[2:]), found
    victim.finish()


@pytest.mark.smoke
def test_what_is_discarded_between_rounds_is_not_there(pair):
    victim = pair.victim("mappings", "--file", "{dir}/file", "--threads", "2")
    found = check_rounds(pair.migrate(victim, *rounds(6), mode="pre-copy").report, 6)
    assert sum(r["dropped_pages"] for r in found) > 0, found
    victim.finish()


@pytest.mark.parametrize("option, value", [
    ("--downtime-limit", "0"), ("--downtime-limit", "-1"), ("--downtime-limit", "abc"), ("--downtime-limit", "1e9"), ("--downtime-limit", "3600001"),
    ("--max-rounds", "0"), ("--max-rounds", "1001"), ("--max-rounds", "x"), ("--streams", "0"), ("--streams", "17"), ("--compress", "gzip"),
    ("--tracker", "guess"),
])
def test_bad_values_are_usage_errors(pair, option, value):
    victim = pair.victim("sleep")
    outcome = pair.send(victim.pid, pair.a, option, value, mode="pre-copy", timeout=20).expect(USAGE).says("hint:", re.escape(option))
    assert outcome.stdout == ""
    victim.finish()


# ---- programs that leave little room ----

@pytest.mark.parametrize("mode", ["stop", "pre-copy"])
def test_descriptor_table_that_is_full(pair, mode):
    """Carried where the agent may raise a limit for a moment, else refused by name; never harmed."""
    victim = pair.victim("crowded", "--descriptors")
    pair.serving(pair.b)
    outcome = pair.send(victim.pid, pair.a, *(EASY if mode == "pre-copy" else ()), mode=mode).expect(DONE, UNSUPPORTED)
    if outcome.code == UNSUPPORTED:
        outcome.says("descriptors", "RLIMIT_NOFILE", rf"\b{victim.pid}\b")
    else:
        victim.host = pair.b
    victim.check_running()
    victim.finish()


@pytest.mark.limit(120)
@pytest.mark.parametrize("spare", ["0", "40", "2000"])
def test_mappings_that_are_nearly_exhausted(pair, spare):
    """Carried or refused by name; never harmed."""
    victim = pair.victim("crowded", "--mappings", spare)
    pair.serving(pair.b)
    outcome = pair.send(victim.pid, pair.a, *EASY, mode="pre-copy").expect(DONE, UNSUPPORTED)
    if outcome.code == UNSUPPORTED:
        outcome.says("mappings", "max_map_count", rf"\b{victim.pid}\b")
    else:
        victim.host = pair.b
    assert outcome.code == (DONE if spare == "2000" else UNSUPPORTED)
    victim.check_running()
    victim.finish()


def test_program_without_privileges(pair):
    prefix = ("/usr/bin/setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set", "-all", "--no-new-privs")
    victim = pair.victim("oracle", "--file", "{dir}/file", "--mb", "1", "--move", "--pages-per-second", "2000", prefix=prefix)
    for _ in ("there", "back"):
        check_rounds(pair.migrate(victim, *rounds(3), mode="pre-copy").report, 3)
    victim.finish()


def test_own_userfaultfd_is_refused_by_name(pair):
    victim = pair.victim("holds", "--dir", "{dir}", "--hold", "userfaultfd")
    pair.serving(pair.b)
    pair.send(victim.pid, pair.a, mode="pre-copy").expect(UNSUPPORTED).says("userfaultfd", rf"\b{victim.pid}\b", "hint:")
    victim.check_running()
    victim.finish()


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wp-async", "soft-dirty"])
def test_each_tracker_or_a_word_why_not(pair, tracker):
    victim = pair.victim("oracle", "--file", "{dir}/file", "--mb", "1", "--pages-per-second", "1000")
    pair.serving(pair.b)
    outcome = pair.send(victim.pid, pair.a, *rounds(2), "--tracker", tracker, mode="pre-copy").expect(DONE, UNSUPPORTED)
    if outcome.code == UNSUPPORTED:
        outcome.says("kernel|soft-dirty|userfaultfd", "hint:")
    else:
        assert outcome.report["tracker"].replace("_", "-") == tracker
        victim.host = pair.b
    victim.check_running()
    victim.finish()


def test_option_less_migration_copies_in_rounds(pair):
    victim = pair.victim("sleep")
    pair.serving(pair.b)
    arguments = [a for a in pair.migrate_arguments(victim.pid, pair.a, mode="") if a not in ("--mode", "")]
    outcome = pair.godwit(pair.a, *arguments).expect(DONE)
    check_rounds(outcome.report)
    victim.host = pair.b
    wait_until(lambda: not pair.a.alive(victim.pid), 10, "the copy at the source is gone")
    victim.finish()
