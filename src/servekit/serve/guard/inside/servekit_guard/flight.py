"""The requests in flight, in a file that outlives the server: what it was working on when it died.

Each request has a fixed slot in a shared mapping: the kernel keeps what was written, however the process ends. A slot
holds names and sizes, never a value: no prompt, no key. servekit creates the file, and reads it after the death.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .usage.mapped import make_mapped_file, map_file

SLOT_BYTES = 512
MAX_FIELDS = 16
PLAIN_NAME = re.compile(r"[A-Za-z0-9_]{1,32}")
"""Names of fields come from a client: at most `MAX_FIELDS` are recorded, and only plain ones."""
_SEPARATOR = "\t"
_END = b"\n"
"""Ends a slot's text. A text that was being written when its process was killed has none."""


@dataclass(frozen=True)
class InFlight:
    """One request that was in flight."""

    began_s: float
    """The monotonic second (one clock for all processes of a host) at which its body was complete."""
    request_id: str
    route: str
    body_bytes: int
    fields: str
    """The names of its body's fields: `prompt(11), stop[4]` with the length of a string, of a list or an object."""
    key: str = ""
    """The name of its key."""


class Flights:
    """The server's side: one object per process, on the event loop."""

    def __init__(self, path: str | None, slots: int) -> None:
        """Map the file at `path`; None records nothing. Raises OSError or ValueError when the file is missing."""
        self._map: Any = None
        self._free: list[int] = []
        self.engine_dead: Callable[[], bool] = lambda: False
        if path is not None:
            self._map = map_file(path, slots * SLOT_BYTES)
            self._free = [slot * SLOT_BYTES for slot in reversed(range(slots))]

    @contextmanager
    def record(
        self, request_id: str, route: str, body_bytes: int, fields: Mapping[str, Any], key: str = ""
    ) -> Iterator[None]:
        """Record a request within this `with`; record nothing when no slot is free. The id must be plain.

        The slot is not cleared once the engine is dead: vLLM fails every request then, and those are the ones that
        matter.
        """
        place = self._free.pop() if self._free else None
        if place is not None:
            values = f"{time.monotonic():.3f}", request_id, route, str(body_bytes), key, _describe(fields)
            text = _SEPARATOR.join(values).encode("ascii", "replace")[: SLOT_BYTES - 1] + _END
            self._map[place : place + len(text)] = text
        try:
            yield
        finally:
            if place is not None and not self.engine_dead():
                self._map[place : place + SLOT_BYTES] = bytes(SLOT_BYTES)
                self._free.append(place)


def make_flight_file(path: Path, slots: int) -> None:
    """Create a new file before the start; called by servekit."""
    make_mapped_file(path, slots * SLOT_BYTES)


def read_flights(path: Path) -> list[InFlight]:
    """Return what was in flight, the latest first; nothing when the file is missing. Called by servekit."""
    data = path.read_bytes() if path.exists() else b""
    slots = [_parse(data[place : place + SLOT_BYTES]) for place in range(0, len(data), SLOT_BYTES)]
    return sorted(filter(None, slots), key=lambda flight: flight.began_s, reverse=True)


def _parse(slot: bytes) -> InFlight | None:
    """Read a slot; None for one that is free, or that was being written when its process ended."""
    text, end, _ = slot.partition(_END)
    parts = text.decode("ascii", "replace").split(_SEPARATOR)
    try:
        began_s, request_id, route, body_bytes, key, fields = parts
        flight = InFlight(float(began_s), request_id, route, int(body_bytes), fields, key)
    except ValueError:
        return None
    return flight if end and all(part.isprintable() for part in parts) else None


def _describe(fields: Mapping[str, Any]) -> str:
    """Return the fields whose names are plain, and the number of the others."""
    plain = [f"{name}{_size(fields[name])}" for name in islice(fields, MAX_FIELDS) if PLAIN_NAME.fullmatch(name)]
    rest = len(fields) - len(plain)
    return ", ".join([*plain, f"{rest} more"] if rest else plain)


def _size(value: Any) -> str:
    if isinstance(value, str):
        return f"({len(value)})"
    return f"[{len(value)}]" if isinstance(value, (list, dict)) else ""
