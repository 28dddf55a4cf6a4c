"""What each name has used in this run: one slot of counters a name, in a mapped file.

A count is one store of eight aligned bytes, so a reader never sees half of one. servekit creates the file, reads it
while the server runs, and books what is in it after the end, its own included.
"""

import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

from .mapped import make_mapped_file, map_file

NAME_BYTES = 40
SLOTS = 1024
OWN, OTHERS, NO_KEY = "(servekit)", "(others)", "(no key)"
"""What no key's name can be: servekit's own requests, names beyond the last slot, requests without authentication."""
_RUN_BYTES = 16
_HEAD_BYTES = _RUN_BYTES + 8
"""The run's id, and 1 once the ledger is whole (`Ledger.close`)."""


class Usage(NamedTuple):
    """What one name has used, since the start of the run where nothing else is said."""

    ok: int = 0
    """Requests that were answered."""
    cancelled: int = 0
    """Their clients left while the engine worked for them."""
    refused: int = 0
    """Answered with 4xx, by the guard or by vLLM, or with 503 during a drain."""
    failed: int = 0
    """Answered with 5xx, or in flight when the engine died."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    in_flight_us: int = 0
    """Microseconds that its requests were in flight."""
    in_flight: int = 0
    """Requests that are in flight now."""

    def at_the_end(self) -> "Usage":
        """Return what it is once the run has ended: what was in flight has failed."""
        return self._replace(failed=self.failed + self.in_flight, in_flight=0)


FIELDS = len(Usage._fields)
SLOT_BYTES = NAME_BYTES + 8 * FIELDS
LEDGER_BYTES = _HEAD_BYTES + SLOTS * SLOT_BYTES


class Ledger:
    """The server's side; without a file it counts in memory only."""

    def __init__(self, path: str | None) -> None:
        """Map the file at `path`. Raises OSError or ValueError when it is missing."""
        self._bytes: Any = map_file(path, LEDGER_BYTES) if path is not None else bytearray(LEDGER_BYTES)
        self.cells = memoryview(self._bytes).cast("Q")
        """Every counter; those of a name begin at `place(name)`, in the order of `Usage`."""
        self._places: dict[str, int] = {}
        self.place(OTHERS)

    def place(self, name: str) -> int:
        """Return where the counters of a name begin; those of `OTHERS` once all slots are taken."""
        place = self._places.get(name)
        if place is None:
            if len(self._places) == SLOTS:
                return self._places[OTHERS]
            begin = _HEAD_BYTES + len(self._places) * SLOT_BYTES
            self._bytes[begin : begin + len(name)] = name.encode("ascii")
            place = self._places[name] = (begin + NAME_BYTES) // 8
        return place

    def close(self) -> None:
        """Mark it as whole: nothing that its server has done is missing, and the server ends now."""
        self.cells[_RUN_BYTES // 8] = 1


def make_ledger(path: Path) -> None:
    """Create an empty file with the id of a new run."""
    make_mapped_file(path, LEDGER_BYTES)
    with path.open("r+b") as file:
        file.write(os.urandom(_RUN_BYTES))


def read_ledger(path: Path) -> tuple[str, dict[str, Usage], bool]:
    """Return the run's id, what each name has used, and whether its server has closed the ledger.

    Nothing when the file is missing or is no ledger.
    """
    data = path.read_bytes() if path.exists() else b""
    if len(data) != LEDGER_BYTES:
        return "", {}, False
    slots = (data[begin : begin + SLOT_BYTES] for begin in range(_HEAD_BYTES, LEDGER_BYTES, SLOT_BYTES))
    used = {}
    for slot in slots:
        if name := slot[:NAME_BYTES].rstrip(b"\0").decode("ascii", "replace"):
            used[name] = Usage(*struct.unpack_from(f"={FIELDS}Q", slot, NAME_BYTES))
    used = {name: usage for name, usage in used.items() if any(usage)}
    return data[:_RUN_BYTES].hex(), used, any(data[_RUN_BYTES:_HEAD_BYTES])
