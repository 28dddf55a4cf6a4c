"""The books in SQLite: what each name used in each hour, and how much of each run's counters is booked."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from servekit.errors import Finding
from servekit.file_trouble import find_trouble, keep_owner
from servekit.serve.guard.inside.servekit_guard.usage.ledger import Usage

SCHEMA_VERSION: Final = 1
HOUR_S: Final = 3600
DAY_S: Final = 86_400
_COLUMNS: Final = Usage._fields[:-1]
"""Everything but the requests in flight now."""
_LIST: Final = ", ".join(_COLUMNS)
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS usage (hour INTEGER, name TEXT, {_LIST}, PRIMARY KEY (hour, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS booked (run TEXT, name TEXT, {_LIST}, PRIMARY KEY (run, name)) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_ADD: Final = (
    f"INSERT INTO usage VALUES (?, ?, {', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO UPDATE SET "  # noqa: S608
    + ", ".join(f"{column} = {column} + excluded.{column}" for column in _COLUMNS)
)
_FORGET: Final = (
    "DELETE FROM usage WHERE hour < ? AND hour < "  # noqa: S608
    f"(SELECT MIN(day) FROM (SELECT DISTINCT hour / {DAY_S} * {DAY_S} AS day FROM usage ORDER BY day DESC LIMIT ?))"
)
_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY_S: Final = 2.0


class BooksError(Exception):
    """The books cannot be read or written."""

    def __init__(self, finding: Finding, *, damaged: bool = False) -> None:
        """`damaged`: the file is no database, or not a whole one."""
        super().__init__(str(finding))
        self.finding = finding
        self.damaged = damaged


def database_path(state_dir: Path) -> Path:
    """Return the file of the books."""
    return state_dir / "usage.db"


def book(path: Path, run: str, used: dict[str, Usage], now_s: float, keep_days: int) -> dict[str, Usage]:
    """Book what a run has used since it was last booked, and return it; in the hour of `now_s`, all of it or nothing.

    used: the counters of the whole run. Hours older than `keep_days` are removed, but never of the newest `keep_days`
    days in the books: a clock that jumps adds a day and does not empty them. Raises BooksError.
    """
    hour = int(now_s) // HOUR_S * HOUR_S
    added = {}
    with _open(path, "rwc") as database:
        (newest,) = database.execute("SELECT MAX(hour) FROM usage").fetchone()
        booked = _booked(database, run)
        for name, usage in used.items():
            now = usage[: len(_COLUMNS)]
            new = [value - old for value, old in zip(now, booked.get(name, [0] * len(now)), strict=True)]
            if any(new):
                added[name] = Usage(*new)
                database.execute(_ADD, (hour, name, *new))
                marks = ", ".join("?" * (2 + len(now)))
                database.execute(f"INSERT OR REPLACE INTO booked VALUES ({marks})", (run, name, *now))  # noqa: S608
        if newest != hour:
            database.execute(_FORGET, (hour - keep_days * DAY_S, keep_days))
    return added


def close_run(path: Path, run: str) -> None:
    """Forget how much of a run is booked: its counters are gone. Raises BooksError."""
    with _open(path, "rwc") as database:
        database.execute("DELETE FROM booked WHERE run = ?", (run,))


def is_booked(path: Path, run: str, used: dict[str, Usage]) -> bool:
    """Return whether all that a run has used until its end is in the books. Raises BooksError."""
    ended = {name: [*each.at_the_end()[: len(_COLUMNS)]] for name, each in used.items()}
    if not path.exists():
        return not ended
    with _open(path, "ro") as database:
        return _booked(database, run) == ended


def _booked(database: sqlite3.Connection, run: str) -> dict[str, list[int]]:
    rows = database.execute(f"SELECT name, {_LIST} FROM booked WHERE run = ?", (run,))  # noqa: S608
    return {name: values for name, *values in rows}


def read_usage(path: Path, since_s: float = 0.0) -> dict[str, dict[str, int | float]]:
    """Return what each name has used from the hour of `since_s` on; nothing where no books exist. Raises BooksError."""
    if why := find_trouble(path):
        raise BooksError(Finding(file=str(path), **keep_owner(why)))
    if not path.exists():
        return {}
    sums = ", ".join(f"SUM({column})" for column in _COLUMNS)
    with _open(path, "ro") as database:
        rows = database.execute(
            f"SELECT name, {sums} FROM usage WHERE hour >= ? GROUP BY name ORDER BY name",  # noqa: S608
            (int(since_s) // HOUR_S * HOUR_S,),
        ).fetchall()
    return {name: _readable(dict(zip(_COLUMNS, values, strict=True))) for name, *values in rows}


def put_aside(path: Path) -> Path:
    """Rename a damaged file, so that new books can begin, and return its new name. Raises OSError."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return path.replace(aside)


def _readable(row: dict[str, int]) -> dict[str, int | float]:
    microseconds = row.pop("in_flight_us")
    return {**row, "in_flight_s": round(microseconds / 1e6, 3)}


@contextlib.contextmanager
def _open(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """Open the books for one transaction, which is rolled back on an error."""
    try:
        if mode != "ro":
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version not in {0, SCHEMA_VERSION}:
                raise BooksError(
                    Finding(
                        f"has the schema of a newer servekit (this one writes version {SCHEMA_VERSION})",
                        file=str(path),
                        got=f"version {version}",
                        remedy="use the servekit that wrote it, or move the file away",
                    )
                )
            if version == 0 and mode != "ro":
                database.execute("PRAGMA journal_mode = WAL")
                database.executescript(_SCHEMA)
            with database:
                yield database
    except sqlite3.Error as error:
        damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
        remedy = "move the file away; new books begin at once" if damaged else "check space and rights of its folder"
        raise BooksError(Finding(f"cannot be used: {error}", file=str(path), remedy=remedy), damaged=damaged) from error
    except OSError as error:
        remedy = "check space and rights of its folder"
        raise BooksError(Finding(f"cannot be used: {error.strerror}", file=str(path), remedy=remedy)) from error
