"""The package's layout: file names are unique, folders stay small, and no folder imports one above it."""

import ast
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "servekit"
FILES = sorted(SOURCE.rglob("*.py"))

ORDER = (
    {"__init__", "errors", "file_trouble", "logs", "settings", "nvml", "thread_pool"},
    {"profile", "demo"},
    {"preflight"},
    {"serve"},
    {"observe"},
    {"run", "measure", "recipe"},
    {"tune"},
    {"cli"},
)
"""The folders and modules from the lowest level up: each imports from its own level and those below."""

LARGEST_ROOM = 15


def test_file_names_are_unique() -> None:
    """No two Python files have the same name, except `__init__`."""
    names = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_rooms_are_small() -> None:
    """A folder holds at most 15 Python files, so that it stays easy to survey."""
    sizes = Counter(path.parent.relative_to(SOURCE) for path in FILES if path.name != "__init__.py")
    assert {str(room): size for room, size in sizes.items() if size > LARGEST_ROOM} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_imports_upwards(path: Path) -> None:
    """A file imports nothing from a level above its own, not even inside a function or for its types."""
    level = level_of(path.relative_to(SOURCE).with_suffix("").parts[0])
    above = [name for name in imported(path) if level_of(name) > level]
    assert above == []


def level_of(room: str) -> int:
    """Return the level of a folder or module; a new one must first get its place in ORDER."""
    return next(level for level, rooms in enumerate(ORDER) if room in rooms)


def imported(path: Path) -> set[str]:
    """Return the folders and modules of servekit that a file imports, anywhere in the file."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules += [f"{node.module}.{name.name}" for name in node.names]
    rooms = {[*module.split("."), ""][1] for module in modules if module.split(".")[0] == "servekit"}
    return {room for room in rooms if (SOURCE / room).is_dir() or (SOURCE / f"{room}.py").is_file()}
