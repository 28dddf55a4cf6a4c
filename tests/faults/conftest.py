"""The fault suite: each fault is a real `servekit serve`; tests/summary.py prints the table of the results."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from servekit.demo.build import ensure_demo_model
from tests.faults.fault import Fault
from tests.faults.launch import Launch


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all faults, with the demo checkpoint in it."""
    folder = tmp_path_factory.mktemp("cache")
    ensure_demo_model(folder)
    return folder


@pytest.fixture
def launch(cache: Path, tmp_path: Path) -> Iterator[Callable[[Fault], Launch]]:
    """Start servekit with a fault; at the end, kill what is left of it."""
    with contextlib.ExitStack() as things:

        def start(fault: Fault) -> Launch:
            made = Launch(fault, tmp_path, cache, things)
            fault.prepare(made)
            things.enter_context(made.start())
            return made

        yield start
