"""`servekit key` for named keys, and `servekit usage`."""

import csv
import json
import time
from pathlib import Path

import click.testing
import pytest

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.serve.books.database import DAY_S, book, database_path
from servekit.serve.guard import LEDGER_FILE_NAME
from servekit.serve.guard.inside.servekit_guard.usage.ledger import Ledger, Usage, make_ledger, read_ledger
from servekit.serve.guard.keys import load_key_lines
from servekit.serve.run_lock import alone_in


def run(*words: str, state: Path, code: int = 0) -> click.testing.Result:
    """Run a command with this state folder."""
    ended = click.testing.CliRunner().invoke(command, [*words, "--state-dir", str(state)])
    assert (ended.exit_code == 0) == (code == 0), ended.output
    return ended


def test_a_key_for_a_team(tmp_path: Path) -> None:
    """It gets a name and an expiry, is listed without the key, shown by its name, and revoked."""
    first = run("key", "--new", "--show", state=tmp_path).stdout.strip()
    team = run("key", "--new", "--name", "team-a", "--expires", "90d", "--show", state=tmp_path).stdout.strip()
    keys = load_key_lines(tmp_path / "api_keys")
    assert list(keys) == [team, first]
    assert keys[team].expires_s == pytest.approx(time.time() + 90 * DAY_S, abs=DAY_S)
    listed = run("key", "--list", "--format", "json", state=tmp_path).stdout
    assert [(row["name"], row["state"]) for row in json.loads(listed)] == [
        ("team-a", "valid"),
        (keys[first].name, "valid"),
    ]
    text = run("key", "--list", state=tmp_path).stdout
    assert "team-a" in text
    assert not any(key in text + listed for key in keys)
    assert run("key", "--show", "--name", "team-a", state=tmp_path).stdout.strip() == team
    run("key", "--revoke", "team-a", state=tmp_path)
    assert list(load_key_lines(tmp_path / "api_keys")) == [first]


def test_a_date_and_an_expired_key(tmp_path: Path) -> None:
    """A date is its first second in UTC; an expired key is listed as such, and --show passes over it."""
    run("key", "--new", "--name", "old", "--expires", "2999-01-31", state=tmp_path)
    old = run("key", "--show", state=tmp_path).stdout.strip()
    path = tmp_path / "api_keys"
    assert "expires=2999-01-31T00:00:00Z" in path.read_text()
    path.write_text(path.read_text().replace("2999", "2020"))
    [row] = json.loads(run("key", "--list", "--format", "json", state=tmp_path).stdout)
    assert (row["expires"], row["state"]) == ("2020-01-31T00:00:00Z", "expired")
    valid = "sk-servekit-" + "v" * 43
    for words, told in ([], "every key in it has expired"), (["--name", "old"], "(got old)"):
        assert told in str(run("key", "--show", *words, state=tmp_path, code=2).exception)
    path.write_text(path.read_text() + valid + "\n")
    assert old in path.read_text()
    assert run("key", "--show", state=tmp_path).stdout.strip() == valid


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--new", "--expires", "soon"], "such as 12h, 7d or 4w, or a date, such as 2027-01-31 (got soon)"),
        (["--new", "--expires", "2020-13-01"], "must be a date"),
        (["--new", "--expires", "2020-01-01"], "must be in the future (got 2020-01-01)"),
        (["--new", "--expires", "0d"], "must be in the future (got 0d)"),
        (["--new", "--name", "a/b"], "1 to 40 letters"),
        (["--expires", "1d"], "--expires needs --new"),
        (["--name", "a"], "--name needs --new"),
        (["--list", "--revoke", "a"], "one of --new, --list and --revoke"),
        (["--show", "--name", "nobody"], "has this name (got nobody)"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], told: str) -> None:
    """A wrong option is a usage error that says what it got and what to write."""
    run("key", "--new", state=tmp_path)
    ended = run("key", *words, state=tmp_path, code=2)
    assert isinstance(ended.exception, SystemExit)
    assert told in " ".join(ended.output.replace("│", " ").split())


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Books of an hour ago and of ten days ago."""
    for run_id, days in (("one", 10.0), ("two", 0.1)):
        used = {"a": Usage(ok=2, prompt_tokens=1000, in_flight_us=1_500_000), "b": Usage(refused=1)}
        book(database_path(tmp_path), run_id, used, time.time() - days * DAY_S, 400)
    return tmp_path


def test_usage_as_text(books: Path) -> None:
    """A table with a line for each key and their sum."""
    told = run("usage", state=books).stdout.splitlines()
    assert told[0].split()[:3] == ["key", "ok", "cancelled"]
    assert told[1].split() == ["a", "4", "0", "0", "0", "2,000", "0", "0", "3.0"]
    assert told[-1].split() == ["total", "4", "0", "2", "0", "2,000", "0", "0", "3.0"]


def test_usage_since(books: Path) -> None:
    """--since leaves older hours out; JSON and CSV have the same numbers."""
    as_json = json.loads(run("usage", "--since", "7d", "--format", "json", state=books).stdout)
    as_csv = list(csv.DictReader(run("usage", "--since", "7d", "--format", "csv", state=books).stdout.splitlines()))
    assert [(row["key"], row["ok"], row["in_flight_s"]) for row in as_json] == [("a", 2, 1.5), ("b", 0, 0.0)]
    assert as_csv == [{field: str(value) for field, value in row.items()} for row in as_json]


def test_usage_of_a_time_without_requests(books: Path) -> None:
    """Nothing is in the table, and standard error says why."""
    ended = run("usage", "--since", "1h", state=books)
    assert (ended.stdout, ended.stderr) == ("", f"{books}/usage.db: nothing is booked for this time\n")


def test_usage_without_books(tmp_path: Path) -> None:
    """No books: nothing is printed but where they should be, in each format, and nothing is created."""
    ended = run("usage", state=tmp_path)
    absent = "does not exist: name the state folder of the endpoint with --state-dir"
    assert (ended.stdout, ended.stderr) == ("", f"{tmp_path}/usage.db: {absent}\n")
    assert json.loads(run("usage", "--format", "json", state=tmp_path).stdout) == []
    assert run("usage", "--format", "csv", state=tmp_path).stdout.split() == ["key"]
    assert list(tmp_path.iterdir()) == []


def test_usage_of_a_killed_run(books: Path) -> None:
    """What a killed servekit has left is not in the table: standard error says so until it is booked."""
    path = books / "run-8000" / LEDGER_FILE_NAME
    path.parent.mkdir()
    make_ledger(path)
    ledger = Ledger(str(path))
    ledger.cells[ledger.place("a") + Usage._fields.index("in_flight")] = 1
    told = f"{path.parent}: not all is booked yet; the next start with --port 8000 does it\n"
    assert run("usage", state=books).stderr == told
    with alone_in(path.parent):
        assert run("usage", state=books).stderr == "", "its servekit runs"
    run_id, used, _ = read_ledger(path)
    book(database_path(books), run_id, {"a": used["a"]._replace(failed=1)}, time.time(), 400)
    assert run("usage", state=books).stderr == ""


def test_usage_of_a_wrong_folder(tmp_path: Path) -> None:
    """A state folder that does not exist is a mistake, not an endpoint without requests."""
    ended = run("usage", "--format", "json", state=tmp_path / "wrong", code=2)
    assert isinstance(ended.exception, ConfigurationError)
    assert str(ended.exception) == f"{tmp_path}/wrong: error: no such folder; name the endpoint's with --state-dir"
    assert not ended.stdout


def test_broken_books(tmp_path: Path) -> None:
    """They are a mistake of the folder, with the file and what to do."""
    database_path(tmp_path).write_bytes(b"no database" * 99)
    ended = run("usage", state=tmp_path, code=2)
    assert "move the file away" in str(ended.exception)
