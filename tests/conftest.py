"""Fixtures shared by the tests of several folders."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import ports, server
from tests.harness.groups import GroupScheduling, group_of, rank_of
from tests.harness.shared import end_shared
from tests.summary import print_tables

if TYPE_CHECKING:
    from xdist.remote import Producer

ROOT = server.ROOT
find_free_port = ports.free_port
_MARKS = {
    ROOT / "tests" / "engine": (pytest.mark.engine, pytest.mark.timeout(600)),
    ROOT / "tests" / "container": (pytest.mark.container, pytest.mark.timeout(900)),
}
"""Every test in these folders starts an engine, so the timeout is longer than for a unit test."""
KEY = "sk-servekit-0123456789abcdef"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need an engine; run tests that share one next to each other, and the slowest groups first."""
    for item in items:
        for folder, marks in _MARKS.items():
            if item.path.is_relative_to(folder):
                for mark in marks:
                    item.add_marker(mark)
    items.sort(key=lambda item: rank_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "GroupScheduling | None":
    """Send tests that share an engine to one worker, unless the command line sets --dist to another mode."""
    return GroupScheduling(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop a shared engine after the last test in this process that uses it."""
    group = group_of(item.nodeid)
    if nextitem is None or group_of(nextitem.nodeid) != group:
        end_shared(group)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the results that the tests have recorded."""
    print_tables(terminalreporter)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root folder of the repository."""
    return ROOT


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that no other process uses."""
    return find_free_port()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait until a condition holds; on a timeout, fail with the condition's name."""
    return wait_until


def wait_until(condition: Callable[[], object], *, within_s: float = 60, what: str = "the condition") -> None:
    """Return as soon as `condition()` is true; fail the test after `within_s` seconds."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come true within {within_s} s")
        time.sleep(0.02)


def write_key_file(folder: Path, key: str) -> Path:
    """Write a key file with one key, readable only by its owner."""
    path = folder / "keys"
    path.touch(mode=0o600)
    path.write_text(f"{key}\n")
    return path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key file with KEY in it."""
    return write_key_file(tmp_path, KEY)
