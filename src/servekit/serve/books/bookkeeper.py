"""The thread that writes the books and the logs, from files that the guard and the operator write.

It only reads what the server leaves behind, so no answer ever waits for it, and nothing that goes wrong here ends the
endpoint: it is logged once, counted, and tried again.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from servekit.serve.books.audit import Audit, KeyChanges
from servekit.serve.books.database import BooksError, book, close_run, database_path, put_aside
from servekit.serve.books.journal import Journal
from servekit.serve.guard import LEDGER_FILE_NAME, RING_FILE_NAME, GuardSettings
from servekit.serve.guard.inside.servekit_guard.usage.ledger import OWN, Usage, read_ledger
from servekit.serve.guard.inside.servekit_guard.usage.request_ring import Ended, Ring

BOOK_S: Final = 5.0
_PASS_S: Final = 1.0
_LEFT_SUFFIX: Final = ".left"
MIB: Final = 1024**2
REQUEST_LOG_NAME: Final = "requests.jsonl"
_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    **dict.fromkeys(("status", "prompt_tokens", "output_tokens", "images"), int),
    **dict.fromkeys(("queue_s", "first_token_s", "whole_s"), float),
}
logger = logging.getLogger(__name__)


class Bookkeeper:
    """One for each run folder. Any thread may read its figures."""

    def __init__(self, run_dir: Path, settings: GuardSettings, audit: Audit, keys: KeyChanges) -> None:
        """Keep the books in the state folder of what is counted in `run_dir`."""
        self._ledger = run_dir / LEDGER_FILE_NAME
        self._ring = run_dir / RING_FILE_NAME
        self._database = database_path(settings.state_dir)
        self._keep_days = settings.usage_days
        limit_bytes = settings.request_log * MIB
        self._log = Journal(settings.state_dir / REQUEST_LOG_NAME, limit_bytes) if limit_bytes else None
        self._audit = audit
        self.keys = keys
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="books", daemon=True)
        self.problem = ""
        """Why the last booking was not written; empty while the books are kept."""
        self.lost_books = 0
        """Damaged files that were put aside."""
        self._lines_lost = 0

    def take_over(self) -> None:
        """Book what an earlier run of this folder has left: to be called before the guard's files are made anew.

        The old file is kept under another name until the next start, and until it is booked: an engine whose servekit
        was killed a moment ago may still count in it.
        """
        self._attempt(self._write_log)
        for left in self._lefts():
            self._attempt(partial(self._finish, left))
        self._attempt(self._move)
        self._book_lefts()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write everything, the requests that died with the engine included, and end the thread."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._attempt(self._write_log)
        self._book_lefts()
        self._attempt(partial(self._book, self._ledger, ended=True))

    @property
    def lines_lost(self) -> dict[str, int]:
        """How many lines each log has lost."""
        log = {"requests": self._lines_lost + self._log.lost} if self._log is not None else {}
        return {"audit": self._audit.journal.lost, **log}

    def used(self) -> dict[str, Usage]:
        """Return what each name has used in this run."""
        return read_ledger(self._ledger)[1]

    def _run(self) -> None:
        booked_s = time.monotonic()
        while not self._stopped.wait(_PASS_S):
            self._attempt(self._write_log)
            self._attempt(lambda: self.keys.compare(time.time()))
            if time.monotonic() - booked_s >= BOOK_S:
                booked_s = time.monotonic()
                self._book_lefts()
                self._attempt(partial(self._book, self._ledger))

    def _book(self, ledger: Path, *, ended: bool = False) -> None:
        run, used, whole = read_ledger(ledger)
        if not run:
            return
        now = {name: each.at_the_end() for name, each in used.items()} if ended else used
        added = book(self._database, run, now, time.time(), self._keep_days)
        self.problem = ""
        if ended:
            failed = [name for name, new in added.items() if new.failed > 0]
            self._tell_failed({name: used[name].in_flight for name in failed}, whole=whole)

    def _tell_failed(self, running: Mapping[str, int], *, whole: bool) -> None:
        """Say which requests were running at the end, once for each run: when they are booked as failed."""
        running = {name: number for name, number in running.items() if number and name != OWN}
        if not running:
            return
        logger.warning(
            "usage: requests running at the end are booked as failed, %s: %s",
            "with all their tokens" if whole else "and the tokens of their last second may be missing",
            ", ".join(f"{name} {number}" for name, number in running.items()),
        )
        self._audit.write("usage complete" if whole else "usage incomplete", requests=running)

    def _lefts(self) -> list[Path]:
        """Return the files of earlier runs: more than one where the books could not be written."""
        return sorted(self._ledger.parent.glob(f"{self._ledger.name}{_LEFT_SUFFIX}*"))

    def _book_lefts(self) -> None:
        for left in self._lefts():
            self._attempt(partial(self._book, left, ended=True))

    def _finish(self, left: Path) -> None:
        """Book the file for the last time and remove it; first it, for a run that is forgotten would count twice."""
        self._book(left, ended=True)
        run = read_ledger(left)[0]
        left.unlink()
        if run:
            close_run(self._database, run)

    def _move(self) -> None:
        if self._ledger.exists():
            run = read_ledger(self._ledger)[0]
            self._ledger.replace(f"{self._ledger}{_LEFT_SUFFIX}-{run}")

    def _write_log(self) -> None:
        if not self._ring.exists():
            return
        for line in Ring(self._ring).take():
            if isinstance(line, int):
                self._lines_lost += line
            elif self._log is not None:
                _write_request(self._log, line)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - nothing here may end the endpoint
            text = str(error) or repr(error)
            if text != self.problem:
                logger.error("usage is not written: %s", text)  # noqa: TRY400
            self.problem = text
            if isinstance(error, BooksError) and error.damaged:
                self._begin_anew()

    def _begin_anew(self) -> None:
        try:
            aside = put_aside(self._database)
        except OSError:
            return
        self.lost_books += 1
        logger.error("the damaged books are %s; new ones begin", aside)
        self._audit.write("books lost", file=str(aside))


def _write_request(log: Journal, line: Ended) -> None:
    """Write a line with numbers as numbers, and without the figures that the request does not have."""
    time_s, *others = line
    values = {name: _PARSERS.get(name, str)(text) for name, text in zip(line._fields[1:], others, strict=True) if text}
    log.write("request", values | {"stream": bool(line.stream)}, float(time_s))
