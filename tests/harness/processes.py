"""Processes from /proc: which run, parents and children, memory in bytes, processor time in seconds."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Resident memory: `rss_bytes` counts shared pages in full, `pss_bytes` only this process's share of them."""

    rss_bytes: int
    pss_bytes: int


def processes_of_group(group: int) -> list[int]:
    """Return the running processes of a process group, without zombies."""
    return [pid for pid in all_processes() if (fields := _stat(pid)) and int(fields[2]) == group and _lives(fields)]


def children_of(parent: int) -> list[int]:
    """Return the running children of a process."""
    return [pid for pid in all_processes() if (fields := _stat(pid)) and int(fields[1]) == parent and _lives(fields)]


def is_running(pid: int) -> bool:
    """Return whether a process is running, not a zombie."""
    return _lives(_stat(pid))


def all_processes() -> list[int]:
    """Return all process ids of this machine."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def memory_of(pid: int) -> Memory:
    """Return the resident memory of one process (proc_pid_smaps(5), smaps_rollup)."""
    fields = {}
    for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value
    rss, pss = (int(fields[name].split()[0]) * 1024 for name in ("Rss", "Pss"))
    return Memory(rss, pss)


def cpu_seconds(pids: Iterable[int], *, main_threads: bool = False) -> float:
    """Return the processor time that these processes have used so far; dead ones count as 0.

    All threads count, or only the main one of each process.
    """
    ticks = 0
    for pid in pids:
        fields = _stat(f"{pid}/task/{pid}" if main_threads else pid)
        ticks += int(fields[11]) + int(fields[12]) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def started(pid: int) -> int:
    """Return when a process started, in ticks since boot (proc_pid_stat(5))."""
    return int(_stat(pid)[19])


def busy_seconds() -> float:
    """Return the processor time that all programs here have used so far (proc_stat(5): user, nice, system)."""
    user, nice, system = (PROC / "stat").read_text().splitlines()[0].split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Return all processes below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for each in all_processes():
        if fields := _stat(each):
            children.setdefault(int(fields[1]), []).append(each)
    found: list[int] = []
    pending = list(children.get(pid, []))
    while pending:
        found.append(pending.pop(0))
        pending += children.get(found[-1], [])
    return found


def command_line(pid: int) -> str:
    """Return a process's arguments or the title it has set; empty if it has ended."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _lives(fields: list[str]) -> bool:
    return bool(fields) and fields[0] not in "ZX"


def _stat(pid: int | str) -> list[str]:
    """Return the fields of proc_pid_stat(5) after the program's name, from the state on; empty for a dead process."""
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
