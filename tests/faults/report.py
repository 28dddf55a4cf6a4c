"""The results of the faults as a table: printed at the end of the run, and written into a documentation page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.probes import Question

_HEAD = (
    "fault",
    "engine",
    "/readyz",
    "/livez",
    "exit",
    "ended after",
    "slowest probe",
    "of it servekit",
    "asker queued",
    "left",
    "message",
)
_BEGIN, _END = "<!-- faults: begin -->", "<!-- faults: end -->"
_MESSAGE_CHARACTERS = 110


@dataclass(frozen=True)
class Row:
    """The result of one fault."""

    name: str
    engine: str
    ready: Sequence[tuple[str, int]]
    live: Sequence[tuple[str, int]]
    exit_code: int
    seconds: float
    """From the provocation to the end of the process."""
    slowest: Question
    left: int
    message: str

    def cells(self) -> tuple[str, ...]:
        """Return one text per column."""
        parts = (self.slowest.seconds, self.slowest.served_s, self.slowest.waited_s)
        slowest = (f"{1000 * part:.0f} ms" if self.ready else "" for part in parts)
        return (
            *(self.name, self.engine, _over_time(self.ready), _statuses(self.live), str(self.exit_code)),
            *(f"{self.seconds:.1f} s", *slowest, str(self.left), _short(self.message)),
        )


Cells = Sequence[str]


def lines(rows: Sequence[Cells]) -> list[str]:
    """Return the table for a terminal."""
    cells = [_HEAD, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def write(page: Path, rows: Sequence[Cells]) -> None:
    """Write the rows into a Markdown page's table, between its two marks; replace only the rows of the same faults.

    So a run of some faults leaves the other rows unchanged. Raises ValueError if the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(_BEGIN)
    table, end, tail = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{page}: no {_BEGIN} and {_END}")
    kept = {_key(line): line for line in table.strip().splitlines()[2:]}
    kept |= {_key(line): line for line in map(_line, rows)}
    body = "\n".join([_line(_HEAD), _line(["---"] * len(_HEAD)), *kept.values()])
    page.write_text(f"{head}{begin}\n\n{body}\n\n{end}{tail}", encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _key(line: str) -> str:
    """Return a row's fault and engine."""
    return "|".join(line.split("|")[1:3])


def _over_time(answers: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{status} {state}" for state, status in answers) or "closed"


def _statuses(answers: Sequence[tuple[str, int]]) -> str:
    statuses = [str(status) for _, status in answers]
    return ", ".join(now for before, now in zip([None, *statuses], statuses, strict=False) if now != before) or "closed"


def _short(message: str) -> str:
    # Hide the run's temporary folders.
    text = re.sub(r"/\S*/(?=[^/\s]+)", ".../", message.removeprefix("servekit | ").removeprefix("ERROR: "))
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[: _MESSAGE_CHARACTERS - 3]}..."
