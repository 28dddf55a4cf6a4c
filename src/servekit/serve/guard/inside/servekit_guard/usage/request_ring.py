"""One line about each request that has ended, in a ring of fixed slots: servekit takes them out and writes the log.

The lines have names, numbers and the request's id, never a word of prompt, answer or key.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .mapped import make_mapped_file, map_file

SLOT_BYTES = 256
SLOTS = 8192
_HEAD_BYTES = 16
RING_BYTES = _HEAD_BYTES + SLOTS * SLOT_BYTES


class Ended(NamedTuple):
    """One request that has ended; times in seconds, empty where the request had none."""

    time: str
    """When it came, in seconds since the epoch."""
    id: str
    key: str
    route: str
    status: str
    outcome: str
    prompt_tokens: str
    output_tokens: str
    images: str
    queue_s: str
    first_token_s: str
    whole_s: str
    stream: str


class Ring:
    """The mapped ring: the server puts lines, servekit takes them."""

    def __init__(self, path: str | Path) -> None:
        """Map the file. Raises OSError or ValueError when it is missing."""
        self._map = map_file(path, RING_BYTES)
        self._counts = memoryview(self._map).cast("Q")
        """How many lines were put, and how many were taken."""

    def put(self, ended: Ended) -> None:
        """Put a line; the oldest one goes where servekit has not taken it in time."""
        number = self._counts[0]
        begin = _HEAD_BYTES + number % SLOTS * SLOT_BYTES
        line = "\t".join(ended).encode("ascii", "replace")[: SLOT_BYTES - 1] + b"\n"
        self._map[begin : begin + len(line)] = line
        self._counts[0] = number + 1

    def take(self) -> Iterator[Ended | int]:
        """Yield every line since the last call; a number stands for as many lines that were overwritten before."""
        put, taken = self._counts[0], self._counts[1]
        oldest = put - SLOTS + 1  # the slot after it may be being written
        if taken < oldest:
            yield oldest - taken
            taken = oldest
        for number in range(taken, put):
            begin = _HEAD_BYTES + number % SLOTS * SLOT_BYTES
            line, _, _ = self._map[begin : begin + SLOT_BYTES].partition(b"\n")
            parts = line.decode("ascii", "replace").split("\t")
            if len(parts) == len(Ended._fields):
                yield Ended(*parts)
        self._counts[1] = put


def make_ring(path: Path) -> None:
    """Create an empty ring."""
    make_mapped_file(path, RING_BYTES)
