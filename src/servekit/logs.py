"""The log on standard error, servekit's own records and the engine's lines: as text or as JSON lines."""

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

from servekit.errors import Finding, Severity

ENGINE_LOGGER = "engine"
"""The logger whose records are the engine's lines, unchanged."""

LEVELS = {Severity.ERROR: logging.ERROR, Severity.WARNING: logging.WARNING, Severity.NOTE: logging.INFO}
"""The level at which a finding is logged. Log the finding itself, not its text: JSON then holds its parts too."""


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


def configure_logging(log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send every record of servekit and of the engine to `stream` (standard error by default)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format is LogFormat.JSON else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # When the reader is gone (`servekit serve | head`), logging must not fill the log with its own tracebacks.
    logging.raiseExceptions = False


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name == ENGINE_LOGGER:
            return f"engine   | {text}"
        own_level = record.levelno == logging.INFO or isinstance(record.msg, Finding)
        level = "" if own_level else f"{record.levelname}: "
        return "\n".join(f"servekit | {level}{line}" for line in text.splitlines() or [""])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "source": "engine" if record.name == ENGINE_LOGGER else "servekit",
            "level": record.levelname.lower(),
            "message": super().format(record),
        }
        if isinstance(record.msg, Finding):
            line["finding"] = record.msg.as_dict()
        return json.dumps(line, ensure_ascii=False, default=str)
