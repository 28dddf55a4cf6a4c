"""A log of JSON lines with a limit on its size: the oldest file is removed when the newest is full."""

import contextlib
import json
import logging.handlers
import os
import threading
import time
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path

FILES = 5
"""The file that is written, and four older ones."""


class Journal:
    """Writes lines; a line that cannot be written is counted and lost, and nothing else happens."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """Write to `path` and its older copies, at most `limit_bytes` in all."""
        self.lost = 0
        self._lock = threading.Lock()
        self._path = path
        self._limit_bytes = limit_bytes
        self._unsure = True
        """Whether the last line may be half a line: a full disk or a power cut ended it."""

    def write(self, event: str, fields: Mapping[str, object], time_s: float | None = None) -> None:
        """Write one line with the time, the event and the fields."""
        now = time.time() if time_s is None else time_s
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = {"time": f"{moment}.{int(now * 1000) % 1000:03d}Z", "event": event, **fields}
        with self._lock:
            try:
                end = "\n" if self._unsure and _is_torn(self._path) else ""
                handler = _Handler(self._path, maxBytes=self._limit_bytes // FILES, backupCount=FILES - 1)
                with contextlib.closing(handler):  # a file that somebody moves away begins anew with the next line
                    handler.emit(logging.makeLogRecord({"msg": end + json.dumps(line, default=str)}))
                self._unsure = False
            except OSError:
                self.lost += 1
                self._unsure = True


class _Handler(logging.handlers.RotatingFileHandler):
    """Readable by its owner only, and raises what goes wrong."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=_open_private)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the name of logging
        raise  # noqa: PLE0704 - called within the handling of the error


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _is_torn(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False
