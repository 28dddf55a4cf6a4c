"""Whether the kernel's out-of-memory killer has killed a process since the engine started."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_KILLED = re.compile(r"(?:Memory cgroup out of memory|Out of memory)[^:]*: Killed process \d+ \([^)]*\)[^;\n]*")
_RECORD_BYTES = 8192
"""The longest record of /dev/kmsg (the kernel's Documentation/ABI/testing/dev-kmsg)."""
_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Where a control group counts its kills: version 2, version 1."""


class OomWatcher:
    """Finds the kills of the out-of-memory killer between its construction and `read`.

    Two sources, each only where this process may read it: the kernel's log (root, or kernel.dmesg_restrict=0), and
    the count of the control group, which a container has even where the log is closed.
    """

    def __init__(self, log: Path = Path("/dev/kmsg"), events: tuple[Path, ...] = _EVENTS) -> None:
        self._events = events
        self._log = _open_at_end(log)
        self._kills = _count_kills(events)

    def read(self) -> str:
        """Return the kernel's reports since then; empty if there are none or they cannot be read."""
        reports = [found.group(0) for record in self._records() for found in _KILLED.finditer(record)]
        now = _count_kills(self._events)
        if now is not None and self._kills is not None and now > self._kills:
            reports.append("this container's memory limit was reached")
        return "; ".join(dict.fromkeys(reports))

    def close(self) -> None:
        """Close the kernel's log."""
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _records(self) -> Iterator[str]:
        while self._log is not None:
            try:
                record = os.read(self._log, _RECORD_BYTES)
            except BrokenPipeError:  # EPIPE: some records were overwritten before they were read; go on reading
                continue
            except OSError:  # EAGAIN: no more records
                return
            if not record:
                return
            yield record.decode(errors="replace")


def _open_at_end(log: Path) -> int | None:
    with contextlib.suppress(OSError):
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            os.lseek(descriptor, 0, os.SEEK_END)
        return descriptor
    return None


def _count_kills(events: tuple[Path, ...]) -> int | None:
    for path in events:
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text(encoding="ascii").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None
