"""Log lines about the requests in flight when the engine died: names and sizes, never content."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from servekit.serve.guard import InFlight

_NEWEST = 8
_OLDEST = 4
"""The lines list this many of each end: the latest request often killed the engine, the oldest often hung it."""


def in_flight_lines(flights: Sequence[InFlight], now_s: float) -> list[str]:
    """Return the lines about `flights`, which are ordered from the latest on, at the monotonic second `now_s`."""
    if not flights:
        return ["no client request was in flight"]
    lines = [_line(flight, now_s) for flight in flights]
    more = len(lines) - _NEWEST - _OLDEST
    if more > 0:
        lines[_NEWEST:-_OLDEST] = [f"  ... {more} more"]
    return [f"in flight: {len(flights)} request{'' if len(flights) == 1 else 's'}, the latest first:", *lines]


def _line(flight: InFlight, now_s: float) -> str:
    fields = f": {flight.fields}" if flight.fields else ""
    age_s = now_s - flight.began_s
    key = f", key {flight.key}" if flight.key else ""
    return f"  {flight.request_id} {flight.route}{key}, {flight.body_bytes:,} bytes, for {age_s:.1f} s{fields}"


def repeated_lines(flights: Sequence[InFlight], record: Path) -> list[str]:
    """Return the lines about requests whose shape was in flight at the last death too, and write this one's `record`.

    A shape is the route with the names and lengths of the body's fields: a request that is sent again has the same.
    """
    try:
        before = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        before = {}
    shapes = {f"{each.route} {each.fields}": each for each in flights}
    with contextlib.suppress(OSError):  # a full disk must not hide the cause of death
        record.write_text(json.dumps({shape: each.request_id for shape, each in shapes.items()}), encoding="utf-8")
    again = [(each, before[shape]) for shape, each in shapes.items() if shape in before]
    return [
        f"in flight at the last death too: {each.request_id} {each.route}{f' of key {each.key}' if each.key else ''}, "
        f"then as {earlier}: it may be the cause"
        for each, earlier in again[:_NEWEST]
    ]
