"""A file on tmpfs that a program maps is memory: it moves with the program, or stays where both hosts have it."""
import os

import pytest

from harness import NETWORK, PRESET, UNSUPPORTED, wait_until

pytestmark = pytest.mark.smoke
REGION = "/dev/shm/region"


@pytest.fixture(autouse=True)
def clean(pair):
    yield
    for host in (pair.a, pair.b):
        for path in (REGION, REGION + ".closed"):
            host.path(path).unlink(missing_ok=True)


def open_files(host, pid):
    folder = f"/proc/{host.outer(pid)}/fd"
    return [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]


def both(host):
    return [host.path(REGION).exists(), host.path(REGION + ".closed").exists()]


def test_the_file_goes_with_the_program(pair):
    victim = pair.victim("shared", "--file", REGION)
    before = pair.a.path(REGION).stat()
    pair.migrate(victim)
    after = pair.b.path(REGION).stat()
    assert (before.st_size, before.st_mode, before.st_uid) == (after.st_size, after.st_mode, after.st_uid)
    assert both(pair.a) == [False, False], "the source kept what has moved"
    victim.finish()


def test_a_file_of_that_name_at_the_destination_is_no_place_for_it(pair):
    victim = pair.victim("shared", "--file", REGION)
    pair.b.path(REGION).write_text("another's")
    pair.serving(pair.b)
    pair.send(victim.pid, pair.a).expect(UNSUPPORTED).says(REGION)
    assert pair.b.path(REGION).read_text() == "another's"
    assert both(pair.a) == [True, True]
    victim.check_running()
    victim.finish()


def test_a_file_that_somebody_else_uses_does_not_move(pair):
    victim = pair.victim("shared", "--file", REGION)
    other = pair.a.spawn_daemon(["/usr/bin/tail", "-f", REGION])
    wait_until(lambda: any(link.endswith(REGION) for link in open_files(pair.a, other)), 10, "tail has opened it")
    pair.serving(pair.b)
    pair.send(victim.pid, pair.a).expect(UNSUPPORTED).says(REGION, "tail")
    assert both(pair.b) == [False, False]
    pair.a.kill(other)
    victim.check_running()
    victim.finish()


@pytest.mark.skipif(PRESET == "release", reason="release build: has no fault points")
@pytest.mark.parametrize("point", ["objects:made", "round:written", "dest:frozen"])
def test_a_failed_migration_leaves_no_file_behind(pair, point):
    victim = pair.victim("shared", "--file", REGION)
    pair.serve(pair.b, environment={"GODWIT_FAULT": f"cut@{point}"})
    pair.send(victim.pid, pair.a).expect(NETWORK)
    wait_until(lambda: both(pair.b) == [False, False], 10, "the destination has removed what it made")
    assert both(pair.a) == [True, True]
    victim.check_running()
    victim.finish()
