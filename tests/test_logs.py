"""The format of the log."""

import io
import json
import logging

import pytest

from servekit.logs import ENGINE_LOGGER, LogFormat, configure_logging


@pytest.fixture(autouse=True)
def _restore_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers)
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)


def written(log_format: LogFormat) -> str:
    """Log a few lines and return what was written."""
    stream = io.StringIO()
    configure_logging(log_format, stream)
    logging.getLogger("servekit.x").info("two\nlines")
    logging.getLogger("servekit.x").warning("careful")
    logging.getLogger(ENGINE_LOGGER).info("%s", "100% of it")
    try:
        int("no")
    except ValueError:
        logging.getLogger("servekit.x").exception("oh")
    return stream.getvalue()


def test_text_tells_who_speaks() -> None:
    """Each line begins with its source, and shows a level only if it matters."""
    lines = written(LogFormat.TEXT).splitlines()
    assert lines[:4] == [
        *("servekit | two", "servekit | lines", "servekit | WARNING: careful"),
        "engine   | 100% of it",
    ]
    assert lines[4] == "servekit | ERROR: oh"
    assert lines[-1] == "servekit | ERROR: ValueError: invalid literal for int() with base 10: 'no'"


def test_json_is_one_object_a_line() -> None:
    """Each record is one JSON object with time, source, level and message."""
    records = [json.loads(line) for line in written(LogFormat.JSON).splitlines()]
    assert [(r["source"], r["level"]) for r in records] == [
        *(("servekit", "info"), ("servekit", "warning"), ("engine", "info"), ("servekit", "error")),
    ]
    assert records[0]["message"] == "two\nlines"
    assert records[2]["message"] == "100% of it"
    assert records[0]["time"].endswith("+00:00")
