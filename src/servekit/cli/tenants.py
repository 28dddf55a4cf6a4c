"""`servekit key` and `servekit usage`: who may use the endpoint, and who used how much of it."""

import contextlib
import csv
import json
import os
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from servekit.cli.options import settings_options
from servekit.errors import ConfigurationError, Finding
from servekit.settings import read_settings

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_FORMATS = click.Choice(["text", "json", "csv"])


def _period(text: str, otherwise: str = "") -> timedelta:
    found = re.fullmatch(r"([0-9]{1,5})([hdw])", text)
    if not found:
        wanted = f"must be a number of hours, days or weeks, such as 12h, 7d or 4w{otherwise}"
        raise click.BadParameter(f"{wanted} (got {text})")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _expiry(_context: click.Context, _option: click.Parameter, text: str) -> str:
    """Return the time for the key file: `text` itself where it is a date, or as far from now as it says."""
    from servekit.serve.guard.keys import parse_time

    if not text:
        return ""
    if re.match(r"\d{4}-", text):
        try:
            expires_s = parse_time(text)
        except ValueError as error:
            raise click.BadParameter(f"{error} (got {text})") from error
    else:
        expires_s = (datetime.now(UTC) + _period(text, ", or a date, such as 2027-01-31")).timestamp()
    if expires_s <= time.time():
        raise click.BadParameter(f"must be in the future (got {text})")
    return _moment(expires_s)


def _since(_context: click.Context, _option: click.Parameter, text: str) -> timedelta:
    return _period(text)


@click.command(
    short_help="Print, list, replace or revoke clients' keys.",
    epilog="\b\nExamples:\n"
    "  servekit key                              where the keys are\n"
    "  servekit key --list                       names, expiry and limits; never a key\n"
    '  curl -H "Authorization: Bearer $(servekit key --show)" http://127.0.0.1:8000/v1/models\n'
    "  servekit key --new --name team-a --expires 90d --show\n"
    "  servekit key --new --name team-a --keep-old   the old key of team-a stays valid until the next --new\n"
    "  servekit key --revoke team-a\n",
)
@click.option("--show", is_flag=True, help="Print the first valid key of the file, or of --name, instead of the path.")
@click.option("--list", "listed", is_flag=True, help="List the keys by name: expiry, state and limits.")
@click.option("--new", is_flag=True, help="Put a new key into the file; a running endpoint uses it within a second.")
@click.option("--keep-old", is_flag=True, help="With --new: keep the old keys valid.")
@click.option("--name", default="", help="With --new: replace the keys of this name only. With --show: its key.")
@click.option(
    "--expires", default="", callback=_expiry, help="With --new: a date (2027-01-31), or 12h, 90d, 4w from now."
)
@click.option("--revoke", default="", metavar="NAME", help="Remove the keys of this name from the file.")
@click.option("--format", "output", type=_FORMATS, default="text", show_default=True, help="Of --list.")
@settings_options(("api_keys_file", "state_dir"))
def key(
    *,
    show: bool,
    listed: bool,
    new: bool,
    keep_old: bool,
    name: str,
    expires: str,
    revoke: str,
    output: str,
    **flags: Any,
) -> None:
    """Print the path of the key file; list, show, replace or revoke keys."""
    from servekit.serve.guard.keys import NAME_WORD, load_key_lines, own_key_file, revoke_key, rotate_key, valid_keys

    settings = read_settings(flags, os.environ)
    path = settings.api_keys_file or own_key_file(settings.state_dir)
    for given, option in ((keep_old, "--keep-old"), (expires, "--expires"), (name and not show, "--name")):
        if given and not new:
            raise click.UsageError(f"{option} needs --new")
    if sum(map(bool, (new, listed, revoke))) > 1 or (show and (listed or revoke)):
        raise click.UsageError("give one of --new, --list and --revoke; --show goes with --new only")
    if name and not NAME_WORD.fullmatch(name):
        raise click.BadParameter("must have 1 to 40 letters, digits, dots, underscores or dashes", param_hint="--name")
    if revoke:
        click.echo(f"removed {revoke_key(path, revoke)} key(s) named {revoke} from {path}", err=True)
    if listed:
        return _print_rows(output, [_describe(each) for each in load_key_lines(path, manage=True).values()])
    made = rotate_key(path, keep_old=keep_old, name=name, expires=expires) if new else ""
    if made:
        click.echo(f"new key{f' of {name}' if name else ''} in {path}", err=True)
    if made or not show:
        return click.echo(made if show else path)
    found = {text: each for text, each in load_key_lines(path, manage=True).items() if name in ("", each.name)}
    if not found:
        raise click.BadParameter(f"no key in {path} has this name (got {name})", param_hint="--name")
    return click.echo(next(iter(valid_keys(path, found, name))))


@click.command(
    short_help="Print what each key has used.",
    epilog="\b\nExamples:\n"
    "  servekit usage                            the last 30 days, by key\n"
    "  servekit usage --since 7d --format csv > week.csv\n",
)
@click.option(
    "--since", default="30d", show_default=True, callback=_since, help="How far back, in whole hours: 12h, 7d, 4w."
)
@click.option("--format", "output", type=_FORMATS, default="text", show_default=True)
@settings_options(("state_dir",))
def usage(output: str, since: timedelta, **flags: Any) -> None:
    """Print what each key has used: requests by outcome, tokens, images and seconds in flight.

    The books of a running endpoint are at most ten seconds behind.
    """
    from servekit.serve.books.database import BooksError, database_path, is_booked, read_usage
    from servekit.serve.guard import LEDGER_FILE_NAME
    from servekit.serve.guard.inside.servekit_guard.usage.ledger import read_ledger
    from servekit.serve.run_lock import held_by_another

    path = database_path(read_settings(flags, os.environ).state_dir)
    try:
        used = read_usage(path, since_s=time.time() - since.total_seconds())
        for folder in sorted(path.parent.glob("run-*")):
            with contextlib.suppress(OSError):  # another user's folder
                run, ended, _ = read_ledger(folder / LEDGER_FILE_NAME)
                if run and not any(held_by_another(folder)) and not is_booked(path, run, ended):
                    port = folder.name.removeprefix("run-")
                    click.echo(f"{folder}: not all is booked yet; the next start with --port {port} does it", err=True)
    except BooksError as error:
        raise ConfigurationError([error.finding]) from error
    if not path.parent.is_dir():
        remedy = "name the endpoint's with --state-dir"
        raise ConfigurationError([Finding("no such folder", file=str(path.parent), remedy=remedy)])
    rows = [{"key": name, **row} for name, row in used.items()]
    if not rows:
        absent = "does not exist: name the state folder of the endpoint with --state-dir"
        click.echo(f"{path}: {'nothing is booked for this time' if path.exists() else absent}", err=True)
    if rows and output == "text":
        rows.append({"key": "total", **{field: sum(row[field] for row in used.values()) for field in _fields(rows)}})
    _print_rows(output, rows)


def _fields(rows: list[dict[str, Any]]) -> list[str]:
    return [field for field in rows[0] if field != "key"] if rows else []


def _describe(each: Any) -> dict[str, Any]:
    now_s = time.time()
    return {
        "name": each.name,
        "expires": "" if each.expires_s is None else _moment(each.expires_s),
        "state": "expired" if each.expired(now_s) else "valid",
        "in_flight": each.in_flight or "",
        "routes": ",".join(each.routes),
    }


def _moment(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_rows(output: str, rows: list[dict[str, Any]]) -> None:
    """Print rows that have the same fields."""
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
    elif output == "csv":
        writer = csv.DictWriter(sys.stdout, list(rows[0]) if rows else ["key"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)] if rows else []
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
