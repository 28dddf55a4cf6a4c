"""The memory that a process may still take: the host's, or what the control groups that it is in leave of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_VERSIONS: Final = (
    ("0::", "", "memory.max", "memory.current", ""),
    ("memory:", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Of version 2 and 1: its mark in /proc/self/cgroup, its folder, limit, usage, and the prefix in memory.stat."""


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Return total and available bytes of this host or, if less, of a control group; 0 if unknown.

    Page cache counts as available, as it does in the kernel's own MemAvailable: before it kills, the kernel gives up
    the files that it has read. A control group's usage includes them, so a group that has read a checkpoint looks full.
    """
    kib = _numbers(read_text(root / "proc/meminfo"))
    total, available = kib.get("MemTotal:", 0) * 1024, kib.get("MemAvailable:", 0) * 1024
    for limit, used in _groups(root):
        if limit < total:
            total, available = limit, min(available, max(limit - used, 0))
    return total, available


def read_text(path: Path) -> str:
    """Return the text of a file of the kernel; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Return limit and usage, without page cache, of every control group with a limit: this process's and those above.

    In a container the process's own path is that of the host, and its group is the root of what is mounted.
    """
    paths = read_text(root / "proc/self/cgroup").splitlines()
    for mark, folder, limit_file, usage_file, prefix in _VERSIONS:
        top = root / "sys/fs/cgroup" / folder
        own = next((line.partition(mark)[2] for line in paths if mark in line), "/").lstrip("/")
        inner = top / own
        for group in (inner, *(each for each in inner.parents if each.is_relative_to(top))):
            limit = read_text(group / limit_file).strip()
            if limit.isdecimal():
                stat = _numbers(read_text(group / "memory.stat"))
                cached = sum(stat.get(f"{prefix}{age}_file", 0) for age in ("inactive", "active"))
                yield int(limit), int(read_text(group / usage_file) or 0) - cached


def _numbers(table: str) -> dict[str, int]:
    """Return the first two words of each line, the second as a number."""
    rows = (line.split() for line in table.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
