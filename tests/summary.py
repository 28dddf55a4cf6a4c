"""The tables at the end of a run: the faults, and the figures measured in containers.

Tests store their rows as properties of their reports. These reach the one process that prints, whichever worker ran
the test.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.report import lines, write

_FILE = "FAULTS_TABLE"
"""A variable with the path of a page, whose table is replaced by this run's."""


def print_tables(reporter: pytest.TerminalReporter) -> None:
    """Print both tables, and write the table of faults into a page if the environment names one."""
    if faults := [cells for _, cells in _recorded(reporter, "fault")]:
        reporter.section(f"{len(faults)} faults")
        for line in lines(faults):
            reporter.write_line(line)
        if page := os.environ.get(_FILE):
            write(Path(page), faults)
            reporter.write_line(f"written to {page}")
    if notes := list(_recorded(reporter, "container")):
        reporter.section("containers")
        width = max(len(name) for name, _ in notes)
        for name, text in notes:
            reporter.write_line(f"{name:<{width}}  {text}")


def _recorded(reporter: pytest.TerminalReporter, wanted: str) -> Iterator[tuple[str, Any]]:
    """Yield the name of each test that has this property, and its value."""
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                yield from ((report.location[2], value) for name, value in report.user_properties if name == wanted)
