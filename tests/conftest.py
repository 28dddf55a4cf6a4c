"""Fixtures that more than one room's tests use."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KEY = "sk-servekit-0123456789abcdef"


def mark_folder(items: list[pytest.Item], folder: Path, *marks: pytest.MarkDecorator) -> None:
    """Give every test below `folder` these marks."""
    for item in items:
        if item.path.is_relative_to(folder):
            for mark in marks:
                item.add_marker(mark)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the project."""
    return ROOT


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that nobody listened on a moment ago."""
    return find_free_port()


def find_free_port() -> int:
    """Return a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def processes_of_group(group: int) -> list[int]:
    """Return the living processes (no zombies) of a process group."""
    return [pid for pid, (_, pgrp, state) in _process_table() if pgrp == group and state not in "ZX"]


def children_of(parent: int) -> list[int]:
    """Return the living children of a process."""
    return [pid for pid, (ppid, _, state) in _process_table() if ppid == parent and state not in "ZX"]


def is_running(pid: int) -> bool:
    """Whether a process lives and is no zombie."""
    return any(number == pid and state not in "ZX" for number, (_, _, state) in _process_table())


def _process_table() -> Iterator[tuple[int, tuple[int, int, str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            yield int(entry.name), (int(fields[1]), int(fields[2]), fields[0])


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
