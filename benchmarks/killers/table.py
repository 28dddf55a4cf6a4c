"""The table of docs/results-faults.md: each rule, what was sent without it, and what happened."""

import re
from collections.abc import Sequence

from benchmarks.killers.harm import Seen, verdict
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "results-faults.md"
_BEGIN, _END = "<!-- killers: begin -->", "<!-- killers: end -->"
_HEAD = ("rule taken out", "request", "model", "what happened", "seconds", "cause of death")
_CHARACTERS = 120


def write_table(records: Sequence[Seen]) -> None:
    """Write the records between the page's two marks. Raises ValueError when the page has no marks."""
    text = PAGE.read_text(encoding="utf-8")
    head, begin, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{PAGE}: no {_BEGIN} and {_END}")
    rows = [_HEAD, ("---",) * len(_HEAD), *map(_cells, records)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)
    PAGE.write_text(f"{head}{begin}\n\n{table}\n\n{end}{tail}", encoding="utf-8")


def _cells(record: Seen) -> tuple[str, ...]:
    requests = ", then ".join(record["requests"]) or "two images under one uuid"
    model = "262,144 words" if record["wide"] else "demo"
    last = re.sub(r"/\S*/(?=[^/\s]+)", ".../", record["last"].rpartition("EngineCore has died: ")[2])
    return record["rule"], requests, model, _short(verdict(record)), f"{record['seconds']:.0f}", _short(last)


def _short(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 3]}..."
