"""The fault suite: each fault a real `servekit serve`; what was seen of all of them is a table at the end."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from servekit.demo.build import ensure_demo_model
from tests.faults.fault import Fault
from tests.faults.launch import Launch
from tests.faults.report import Row, lines, write

_ROWS = pytest.StashKey[list[Row]]()
_FILE = "FAULTS_TABLE"
"""A variable with the path of a page: its table is replaced by the one of this run."""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all faults, with the demo checkpoint in it."""
    folder = tmp_path_factory.mktemp("cache")
    ensure_demo_model(folder)
    return folder


@pytest.fixture
def launch(cache: Path, tmp_path: Path) -> Iterator[Callable[[Fault], Launch]]:
    """Start into a fault; whatever is left of it at the end is ended."""
    with contextlib.ExitStack() as things:

        def start(fault: Fault) -> Launch:
            made = Launch(fault, tmp_path, cache, things)
            things.callback(made.finish)
            fault.prepare(made)
            made.start()
            return made

        yield start


@pytest.fixture
def rows(pytestconfig: pytest.Config) -> list[Row]:
    """What was seen so far."""
    return pytestconfig.stash.setdefault(_ROWS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it down where that was asked for."""
    seen = config.stash.get(_ROWS, [])
    if not seen:
        return
    terminalreporter.section(f"{len(seen)} faults")
    for line in lines(seen):
        terminalreporter.write_line(line)
    if page := os.environ.get(_FILE):
        write(Path(page), seen)
        terminalreporter.write_line(f"written to {page}")
