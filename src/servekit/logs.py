"""What servekit says on standard error, and how it passes on what the engine says: as text or as JSON lines."""

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

ENGINE_LOGGER = "engine"
"""The logger whose records are lines of the engine, passed on as they came."""


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
    # A reader that has gone (`servekit serve | head`) must not fill the log with tracebacks about logging.
    logging.raiseExceptions = False


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = _text(record, self)
        if record.name == ENGINE_LOGGER:
            return f"engine   | {text}"
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return "\n".join(f"servekit | {level}{line}" for line in text.splitlines() or [""])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "source": "engine" if record.name == ENGINE_LOGGER else "servekit",
            "level": record.levelname.lower(),
            "message": _text(record, self),
        }
        line.update(getattr(record, "fields", {}))
        return json.dumps(line, ensure_ascii=False, default=str)


def _text(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    text = record.getMessage()
    if record.exc_info:
        text = f"{text}\n{formatter.formatException(record.exc_info)}"
    return text
