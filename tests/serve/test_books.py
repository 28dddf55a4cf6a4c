"""The books, the request log and the audit log: kept over restarts, limited, and never in the endpoint's way."""

import json
import os
import resource
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ExitCode
from servekit.serve.books.audit import AUDIT_LOG_NAME, Audit, KeyChanges
from servekit.serve.books.bookkeeper import REQUEST_LOG_NAME, Bookkeeper
from servekit.serve.books.database import DAY_S, HOUR_S, BooksError, book, database_path, read_usage
from servekit.serve.books.journal import FILES, Journal
from servekit.serve.guard import LEDGER_FILE_NAME, RING_FILE_NAME, GuardSettings
from servekit.serve.guard.inside.servekit_guard.usage.ledger import OWN, Ledger, Usage, make_ledger
from servekit.serve.guard.inside.servekit_guard.usage.request_ring import Ended, Ring, make_ring
from servekit.serve.status import State, StatusStore

NOW_S = 1_800_000_000.0
FIRST = "sk-first-0123456789abcdef"


@pytest.fixture
def settings(tmp_path: Path) -> GuardSettings:
    """A state folder with a request log of 1 MiB."""
    return GuardSettings(state_dir=tmp_path, max_in_flight=1, no_auth=True, request_log=1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The server's side of a run whose files are in the state folder too."""
    make_ledger(tmp_path / LEDGER_FILE_NAME)
    return Ledger(str(tmp_path / LEDGER_FILE_NAME))


def keeper(settings: GuardSettings) -> Bookkeeper:
    """Return the bookkeeper of a servekit."""
    audit = Audit(settings.state_dir)
    return Bookkeeper(settings.state_dir, settings, audit, KeyChanges(None, audit))


def use(ledger: Ledger, name: str, *values: int) -> None:
    """Add to the counters of a name."""
    for number, value in enumerate(values):
        ledger.cells[ledger.place(name) + number] += value


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_usage_is_booked_once(settings: GuardSettings, ledger: Ledger) -> None:
    """Every booking adds what is new, and a restart that finds the same counters adds nothing."""
    use(ledger, "a", 1, 0, 0, 0, 10, 20, 3, 1_500_000)
    for _ in range(2):
        keeper(settings).stop()
    use(ledger, "a", 1, 0, 0, 0, 1)
    keeper(settings).take_over()
    used = read_usage(database_path(settings.state_dir))
    assert used["a"] == {
        "ok": 2, "cancelled": 0, "refused": 0, "failed": 0,
        "prompt_tokens": 11, "output_tokens": 20, "images": 3, "in_flight_s": 1.5,
    }  # fmt: skip


def test_what_a_killed_servekit_left(
    settings: GuardSettings, ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next start books it, what the dying engine still counts too, and requests in flight as failed: once."""
    use(ledger, "a", 4, 0, 0, 0, 10, 20, 0, 0, 1)
    use(ledger, OWN, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    after = keeper(settings)
    after.take_over()
    use(ledger, "a", 0, 0, 0, 0, 0, 5)
    make_ledger(tmp_path / LEDGER_FILE_NAME)
    use(Ledger(str(tmp_path / LEDGER_FILE_NAME)), "a", 1)
    after.start()
    after.stop()
    for _ in range(2):  # two more restarts, of which none has lost anything
        keeper(settings).take_over()
    used = read_usage(database_path(settings.state_dir))["a"]
    assert (used["ok"], used["failed"], used["output_tokens"]) == (5, 1, 25)
    told = [each.message.partition("be missing: ")[2] for each in caplog.records if "missing" in each.message]
    assert told == ["a 1"]
    audit = [each for each in lines(settings.state_dir / AUDIT_LOG_NAME) if each["event"] == "usage incomplete"]
    assert [each["requests"] for each in audit] == [{"a": 1}]


def test_what_a_closed_ledger_left(settings: GuardSettings, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """Where the guard has booked everything at the end, the requests are booked as failed, and nothing is missing."""
    use(ledger, "a", 4, 0, 0, 0, 10, 20, 0, 0, 2)
    ledger.close()
    keeper(settings).take_over()
    used = read_usage(database_path(settings.state_dir))["a"]
    assert (used["ok"], used["failed"], used["output_tokens"]) == (4, 2, 20)
    assert [each.message for each in caplog.records] == [
        "usage: requests running at the end are booked as failed, with all their tokens: a 2"
    ]
    audit = lines(settings.state_dir / AUDIT_LOG_NAME)
    assert [(each["event"], each["requests"]) for each in audit] == [("usage complete", {"a": 2})]


def test_a_name_keeps_its_counters(tmp_path: Path) -> None:
    """Hours, runs and keys of one name add up; older hours are left out, and removed when there are newer days."""
    path = tmp_path / "usage.db"
    book(path, "one", {"a": Usage(ok=1), "b": Usage(ok=5)}, NOW_S - 10 * DAY_S, 400)
    book(path, "two", {"a": Usage(ok=2)}, NOW_S, 400)
    assert {name: row["ok"] for name, row in read_usage(path).items()} == {"a": 3, "b": 5}
    assert {name: row["ok"] for name, row in read_usage(path, NOW_S - DAY_S).items()} == {"a": 2}
    book(path, "two", {"a": Usage(ok=3)}, NOW_S + HOUR_S, 1)
    assert {name: row["ok"] for name, row in read_usage(path).items()} == {"a": 3}
    assert path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("jump_days", [3, 500, -500, 100_000])
def test_a_clock_that_jumps_leaves_the_books(tmp_path: Path, jump_days: int) -> None:
    """Whatever day the clock says, and back again: at most the oldest day gives way to each new one."""
    path = tmp_path / "usage.db"
    for day in range(5):
        book(path, str(day), {"a": Usage(ok=1)}, NOW_S + day * DAY_S, 5)
    for number, when in enumerate((jump_days, jump_days, 5)):
        book(path, f"after {number}", {"a": Usage(ok=1)}, NOW_S + when * DAY_S, 5)
    assert read_usage(path)["a"]["ok"] >= 6
    book(path, "much later", {"a": Usage(ok=1)}, NOW_S + 200_000 * DAY_S, 1)
    assert read_usage(path)["a"]["ok"] == 1


def test_restarts_without_books_lose_no_usage(settings: GuardSettings, tmp_path: Path) -> None:
    """While the database cannot be written each run's file is kept; the next start that can book takes all, once."""
    database = database_path(tmp_path)
    database.mkdir()
    for _ in range(3):
        keeper(settings).take_over()
        make_ledger(tmp_path / LEDGER_FILE_NAME)
        use(Ledger(str(tmp_path / LEDGER_FILE_NAME)), "a", 1, 0, 0, 0, 0, 7)
    database.rmdir()
    for _ in range(2):
        books = keeper(settings)
        books.take_over()
        books.stop()
        assert not books.problem
        assert read_usage(database)["a"]["output_tokens"] == 21
    assert not list(tmp_path.glob(f"{LEDGER_FILE_NAME}.left*")), "what is booked is removed"


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + bytes(5000)])
def test_damaged_books(settings: GuardSettings, ledger: Ledger, tmp_path: Path, content: bytes) -> None:
    """They are put aside with a line in the audit log, and new ones hold all that the run has counted."""
    database_path(tmp_path).write_bytes(content)
    use(ledger, "a", 7)
    books = keeper(settings)
    books.stop()
    assert books.problem
    assert books.lost_books == 1
    books.stop()
    assert not books.problem
    assert read_usage(database_path(tmp_path))["a"]["ok"] == 7
    assert [path.read_bytes() for path in tmp_path.glob("usage.db.damaged-*")] == [content]
    assert [line["event"] for line in lines(tmp_path / AUDIT_LOG_NAME)] == ["books lost"]


def test_books_of_a_newer_servekit(settings: GuardSettings, ledger: Ledger, tmp_path: Path) -> None:
    """They are left as they are, with a message that names the version."""
    with sqlite3.connect(database_path(tmp_path)) as database:
        database.execute("PRAGMA user_version = 9")
    use(ledger, "a", 1)
    books = keeper(settings)
    books.stop()
    assert "newer servekit" in books.problem
    assert books.lost_books == 0
    with pytest.raises(BooksError, match="version 9"):
        read_usage(database_path(tmp_path))


@pytest.fixture
def full_disk() -> Path:
    """A device that has no space for anything."""
    return Path("/dev/full")


def test_a_full_disk(settings: GuardSettings, ledger: Ledger, tmp_path: Path, full_disk: Path) -> None:
    """Books and logs report the loss and raise nothing; once there is space, the books hold everything."""
    use(ledger, "a", 3)
    make_ring(tmp_path / RING_FILE_NAME)
    Ring(tmp_path / RING_FILE_NAME).put(ended())
    (tmp_path / REQUEST_LOG_NAME).symlink_to(full_disk)
    books = keeper(settings)
    database = database_path(tmp_path)
    database.mkdir()  # as unusable for SQLite as a full disk
    books.stop()
    assert books.problem
    assert books.lines_lost == {"audit": 0, "requests": 1}
    database.rmdir()
    books.stop()
    assert (books.problem, read_usage(database)["a"]["ok"]) == ("", 3)


def ended(**changes: str) -> Ended:
    """Return the line of a request."""
    line = Ended(f"{NOW_S:.3f}", "r1", "a", "/v1/messages", "200", "ok", "5", "9", "0", "0.1", "", "1.5", "stream")
    return line._replace(**changes)


def test_the_request_log(settings: GuardSettings, tmp_path: Path) -> None:
    """One JSON line a request, with numbers as numbers, and without the times that a request does not have."""
    make_ring(tmp_path / RING_FILE_NAME)
    Ring(tmp_path / RING_FILE_NAME).put(ended())
    keeper(settings).stop()
    assert lines(tmp_path / REQUEST_LOG_NAME) == [
        {
            "time": "2027-01-15T08:00:00.000Z", "event": "request", "id": "r1", "key": "a", "route": "/v1/messages",
            "status": 200, "outcome": "ok", "prompt_tokens": 5, "output_tokens": 9, "images": 0,
            "queue_s": 0.1, "whole_s": 1.5, "stream": True,
        }
    ]  # fmt: skip
    assert (tmp_path / REQUEST_LOG_NAME).stat().st_mode & 0o777 == 0o600


def test_a_log_has_a_limit(tmp_path: Path) -> None:
    """All files of a log together stay below its limit, and the newest lines are in them."""
    journal = Journal(tmp_path / "log", 10_000)
    for number in range(1000):
        journal.write("request", {"number": number})
    files = sorted(tmp_path.iterdir())
    assert len(files) == FILES
    assert sum(file.stat().st_size for file in files) <= 10_000
    assert lines(tmp_path / "log")[-1]["number"] == 999
    assert journal.lost == 0


def test_half_a_line_spoils_no_other(tmp_path: Path) -> None:
    """A disk that fills up within a line costs that line, and not the next one, after a restart too."""
    path = tmp_path / "log"
    Journal(path, 10_000).write("first", {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for again in (False, True):
        journal = Journal(path, 10_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
        try:
            journal.write("half", {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert journal.lost == 1
        for _ in range(2):
            (Journal(path, 10_000) if again else journal).write("next", {})
    whole = [json.loads(line)["event"] for line in path.read_text().splitlines() if line.endswith("}")]
    assert whole == ["first", *["next"] * 4]
    assert len(path.read_text().splitlines()) == len(whole) + 2


def test_keys_in_the_audit_log(tmp_path: Path) -> None:
    """Keys in use, added, changed, revoked and expired, and refused files, by name and never by key."""
    path = tmp_path / "keys"
    path.touch(0o600)
    changes = KeyChanges(path, Audit(tmp_path))
    for number, text in enumerate(
        (
            f"{FIRST} # a",
            f"{FIRST} in-flight=2 # a\n{FIRST}x expires=2027-02-01 # b",
            "short",
            f"{FIRST}x expires=2027-02-01 # b",
        )
    ):
        path.write_text(text)
        os.utime(path, (number, number))
        changes.compare(NOW_S)
    for _ in range(2):
        changes.compare(NOW_S + 60 * DAY_S)
    told = [(line["event"], line.get("name")) for line in lines(tmp_path / AUDIT_LOG_NAME)]
    assert told == [
        ("key in use", "a"),
        ("key changed", "a"),
        ("key added", "b"),
        ("key file refused", None),
        ("key revoked", "a"),
        ("key expired", "b"),
    ]
    assert FIRST not in (tmp_path / AUDIT_LOG_NAME).read_text()


def test_the_endpoints_life_in_the_audit_log(tmp_path: Path) -> None:
    """Each change of state with its reason: a drain with the signal, an end with the exit code."""
    audit = Audit(tmp_path)
    store = StatusStore(on_change=audit.take)
    store.enter(State.STARTING, "checking")
    store.enter(State.STARTING, "loading")
    store.enter(State.READY, "the engine answers")
    store.enter(State.DRAINING, "SIGTERM")
    store.enter(State.STOPPED, "SIGTERM: drained", exit_code=ExitCode.STOPPED)
    told = [(line["state"], line["reason"], line.get("exit_code")) for line in lines(tmp_path / AUDIT_LOG_NAME)]
    assert told == [
        ("starting", "checking", None),
        ("ready", "the engine answers", None),
        ("draining", "SIGTERM", None),
        ("stopped", "SIGTERM: drained", 0),
    ]


def test_without_a_request_log(settings: GuardSettings, ledger: Ledger, tmp_path: Path) -> None:
    """By default there is none, and the books are kept all the same."""
    use(ledger, "a", 1)
    keeper(replace(settings, request_log=0)).stop()
    assert not (tmp_path / REQUEST_LOG_NAME).exists()
    assert read_usage(database_path(tmp_path), time.time() - DAY_S)["a"]["ok"] == 1
