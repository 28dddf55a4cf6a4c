"""Fixtures that more than one room's tests use."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import ports, server
from tests.harness.shared import end_shared
from tests.summary import print_tables

ROOT = server.ROOT
find_free_port = ports.free_port
_ENGINES = ("container", "wide_endpoint", "endpoint", "engine")
"""Fixtures of an engine that many tests share, and the mark of the tests with Docker: each a group of minutes."""
_OWN_ENGINE = {"serve", "launch"}
"""Fixtures that start an engine for one test alone."""
_MARKS = {
    ROOT / "tests" / "engine": (pytest.mark.engine, pytest.mark.timeout(300)),
    ROOT / "tests" / "container": (pytest.mark.container, pytest.mark.timeout(900)),
}
"""Folders whose tests all start an engine, which takes longer than a unit test may."""
KEY = "sk-servekit-0123456789abcdef"


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs an engine; give tests that share one to one worker; put what takes longest first."""
    for item in items:
        for folder, marks in _MARKS.items():
            if item.path.is_relative_to(folder):
                for mark in marks:
                    item.add_marker(mark)
    groups = {item: _group_of(item) for item in items}
    for item, group in groups.items():
        if group:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (_order_of(item, groups[item]), groups[item]))


def _group_of(item: pytest.Item) -> str:
    """Return the name of what a test shares with others: an engine or the Docker Engine; empty where it shares none."""
    if item.get_closest_marker("container"):
        return "container"
    if item.get_closest_marker("engine") is None:
        return ""
    assert isinstance(item, pytest.Function)
    fixtures = set(item.fixturenames)
    if "which" in fixtures and item.callspec.params["which"] == "wide":
        return "wide_endpoint"
    for shared in _ENGINES:
        if shared in fixtures:
            return shared
    return "" if fixtures & _OWN_ENGINE else item.path.stem


def _order_of(item: pytest.Item, group: str) -> int:
    """Return 0 for long groups, 1 for other tests with an engine, 2 for those without."""
    if group in _ENGINES:
        return 0
    return 1 if item.get_closest_marker("engine") else 2


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End a shared engine after the last test that this process has for it."""
    group = _shared_by(item)
    if group and (nextitem is None or _shared_by(nextitem) != group):
        end_shared(group)


def _shared_by(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    return str(mark.args[0]) if mark else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests have recorded."""
    print_tables(terminalreporter)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the project."""
    return ROOT


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that nobody else has."""
    return find_free_port()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait until a condition holds, or fail with its name."""
    return wait_until


def wait_until(condition: Callable[[], object], *, within_s: float = 10, what: str = "the condition") -> None:
    """Return as soon as `condition()` is true; fail the test after `within_s` seconds."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come true within {within_s} s")
        time.sleep(0.02)


def write_key_file(folder: Path, key: str) -> Path:
    """Write a key file with one key, for its owner alone."""
    path = folder / "keys"
    path.touch(mode=0o600)
    path.write_text(f"{key}\n")
    return path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key file with KEY in it."""
    return write_key_file(tmp_path, KEY)
