"""The requests in flight, in a file that outlives the server: what it worked on when it died.

A fixed slot for each request, in a shared mapping: the kernel keeps what was written, whatever ends the process. A slot
holds names and sizes, never a value: no prompt, no key. servekit makes the file and reads it after the death.
"""

import mmap
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .refusals import Scope

REQUEST_ID = "servekit.request_id"
"""Where the scope has the request's id; `-` stands for one without."""
SLOT_BYTES = 512
MAX_FIELDS = 16
MAX_NAME = 32
"""Names of fields come from a client: so many of them, and so many characters of each."""
MAX_ID = 64
_LENGTH_BYTES = 2
_SEPARATOR = "\t"


@dataclass(frozen=True)
class InFlight:
    """One request that was in flight."""

    began_s: float
    """The monotonic second (one clock for all processes of a host) at which its body was there."""
    request_id: str
    route: str
    body_bytes: int
    fields: str
    """The names of its body's fields: `prompt(11), stop[4]` with the length of a string, of a list or an object."""


class Flights:
    """The server's side: one object per process, on the event loop."""

    def __init__(self, path: str | None, slots: int) -> None:
        """Map the file at `path`; None records nothing. Raises OSError or ValueError for a file that is not there."""
        self._map: mmap.mmap | None = None
        self._free: list[int] = []
        self.engine_dead: Callable[[], bool] = lambda: False
        if path is not None:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._map = mmap.mmap(descriptor, slots * SLOT_BYTES)
            finally:
                os.close(descriptor)
            self._free = [slot * SLOT_BYTES for slot in reversed(range(slots))]

    def enter(self, scope: Scope, route: str) -> "Flight":
        """Return the record of one request, to be used in a `with`; nothing is written before `record`."""
        return Flight(self, scope, route)

    def take(self) -> int | None:
        """Return the place of a free slot; None where there is none, and where nothing is recorded."""
        return self._free.pop() if self._free else None

    def write(self, place: int, text: str) -> None:
        """Write a slot's text. Its length comes last: half a text is none."""
        assert self._map is not None
        data = text.encode("ascii", "replace")[: SLOT_BYTES - _LENGTH_BYTES]
        self._map[place + _LENGTH_BYTES : place + _LENGTH_BYTES + len(data)] = data
        self._map[place : place + _LENGTH_BYTES] = len(data).to_bytes(_LENGTH_BYTES, "little")

    def give_back(self, place: int) -> None:
        """Clear a slot, unless the engine is dead: vLLM fails every request then, and those are the ones looked for."""
        assert self._map is not None
        if not self.engine_dead():
            self._map[place : place + _LENGTH_BYTES] = bytes(_LENGTH_BYTES)
            self._free.append(place)


class Flight:
    """One request's record; leaving the `with` clears it."""

    __slots__ = ("_began_s", "_flights", "_place", "_route", "_scope")

    def __init__(self, flights: Flights, scope: Scope, route: str) -> None:
        self._flights = flights
        self._scope = scope
        self._route = route
        self._place: int | None = None
        self._began_s = 0.0

    def record(self, body_bytes: int, fields: Mapping[str, Any] | None = None) -> None:
        """Write it down: again when the parsed body's fields are known."""
        if self._place is None:
            self._place = self._flights.take()
            self._began_s = time.monotonic()
        if self._place is not None:
            known = _plain(str(self._scope.get(REQUEST_ID, "-"))), self._route, str(body_bytes), _described(fields)
            self._flights.write(self._place, _SEPARATOR.join((f"{self._began_s:.3f}", *known)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._place is not None:
            self._flights.give_back(self._place)
            self._place = None


def make_flight_file(path: Path, slots: int) -> None:
    """Make the file (0600) anew: servekit's side, before the start."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Reserved, not only promised: writing into a hole of a full disk would end the server with SIGBUS.
        os.posix_fallocate(descriptor, 0, slots * SLOT_BYTES)
    finally:
        os.close(descriptor)


def read_flights(path: Path) -> list[InFlight]:
    """Return what was in flight, the latest first; nothing where the file is missing. servekit's side."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    found = []
    for place in range(0, len(data), SLOT_BYTES):
        length = int.from_bytes(data[place : place + _LENGTH_BYTES], "little")
        if length:
            flight = _parsed(data[place + _LENGTH_BYTES : place + _LENGTH_BYTES + min(length, SLOT_BYTES)])
            found += [flight] if flight else []
    return sorted(found, key=lambda flight: flight.began_s, reverse=True)


def _parsed(text: bytes) -> InFlight | None:
    """Read a slot; nothing from one that was being written when its process ended."""
    parts = text.decode("ascii", "replace").split(_SEPARATOR)
    try:
        began_s, request_id, route, body_bytes, fields = parts
        flight = InFlight(float(began_s), request_id, route, int(body_bytes), fields)
    except ValueError:
        return None
    return flight if all(part.isprintable() for part in parts) else None


def _described(fields: Mapping[str, Any] | None) -> str:
    """Name the fields that a plain name has, and count the rest."""
    if fields is None:
        return ""
    plain = [f"{name}{_size(fields[name])}" for name in islice(fields, MAX_FIELDS) if _is_plain(name)]
    rest = len(fields) - len(plain)
    return ", ".join([*plain, f"{rest} more"] if rest else plain)


def _is_plain(name: str) -> bool:
    return len(name) <= MAX_NAME and name.isascii() and name.replace("_", "a").isalnum()


def _size(value: Any) -> str:
    if isinstance(value, str):
        return f"({len(value)})"
    return f"[{len(value)}]" if isinstance(value, (list, dict)) else ""


def _plain(text: str) -> str:
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "?" for sign in text[:MAX_ID])
