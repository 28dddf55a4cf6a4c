"""What was in flight when the engine died, in lines for the log: names and sizes, never content."""

from collections.abc import Sequence

from servekit.serve.guard import InFlight

_NEWEST = 8
_OLDEST = 4
"""So many of each end are named: the latest request is often the one that killed, the oldest the one that hung."""


def in_flight_lines(flights: Sequence[InFlight], now_s: float) -> list[str]:
    """Return the lines about these requests, the latest first, at the monotonic second `now_s`."""
    if not flights:
        return ["no client's request was in flight"]
    named = list(flights)
    between: list[str] = []
    if len(named) > _NEWEST + _OLDEST:
        between = [f"  ... {len(named) - _NEWEST - _OLDEST} more"]
    newest, oldest = (named[:_NEWEST], named[-_OLDEST:]) if between else (named, [])
    lines = [f"in flight: {len(named)} request{'' if len(named) == 1 else 's'}, the latest first:"]
    return [*lines, *(_line(each, now_s) for each in newest), *between, *(_line(each, now_s) for each in oldest)]


def _line(flight: InFlight, now_s: float) -> str:
    fields = f": {flight.fields}" if flight.fields else ""
    age_s = now_s - flight.began_s
    return f"  {flight.request_id} {flight.route}, {flight.body_bytes:,} bytes, for {age_s:.1f} s{fields}"
