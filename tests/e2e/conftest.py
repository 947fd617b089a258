"""Time limits, expected skips, and what a failed test shows. There is no plug-in to install for any of it."""
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

DEFAULT_LIMIT = 60  # seconds a test may take, fixtures included
# Why a test may be skipped; any other skip fails the run.
EXPECTED_SKIPS = ("release build:", "kernel:", "program:")
_unexpected = []


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: long sweeps, run by ./run-tests --slow")
    config.addinivalue_line("markers", "smoke: also run with the release build")
    config.addinivalue_line("markers", "limit(seconds): how long the test may take")


class TimeLimit(Exception):
    """The test took longer than its limit."""


def _on_alarm(*_):
    raise TimeLimit("the test took longer than its limit")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    marker = item.get_closest_marker("limit")
    signal.signal(signal.SIGALRM, _on_alarm)
    # A second alarm follows, should a clean-up hang after the first one.
    signal.setitimer(signal.ITIMER_REAL, marker.args[0] if marker else DEFAULT_LIMIT, 30)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(EXPECTED_SKIPS):
            _unexpected.append(f"{item.nodeid}: {reason}")
    pair = getattr(item, "funcargs", {}).get("pair")
    if report.failed and isinstance(pair, harness.Pair):
        for server in pair.servers.values():
            report.sections.append((f"godwit serve on {server.host.name}", server.text()[-6000:]))
        for title, text in pair.last:
            report.sections.append((title, text[-4000:]))


def pytest_sessionfinish(session):
    if _unexpected and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    for line in _unexpected:
        terminalreporter.write_line(f"UNEXPECTED SKIP {line}", red=True)


@pytest.fixture(scope="module")
def hosts_with_keys():
    if os.geteuid() != 0:
        pytest.fail("the end-to-end tests need root")
    with harness.Pair() as pair:
        yield pair


@pytest.fixture
def pair(hosts_with_keys):
    """Two hosts with keys; each test leaves them as it found them."""
    yield hosts_with_keys
    try:
        hosts_with_keys.clear_victims()
        hosts_with_keys.check_clean()
    except BaseException:
        hosts_with_keys.reset()
        raise
