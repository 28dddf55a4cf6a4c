"""The last lines that the engine printed, and the cause of its end that they name."""

import collections
import re
import time
from collections.abc import Callable, Sequence

from servekit.serve.engine.cause import find_cause, without_consequences, without_prefix

_KEPT_LINES = 400
_REPEATED_LINES = 20
_LONGEST_BLOCK_LINES = 100
_IDENTITY = re.compile(r"\b(?=[0-9a-f-]*\d)[0-9a-f]{8}[0-9a-f-]*\b|\b0x[0-9a-f]+\b")
"""Request ids and addresses: what differs in two tracebacks of the same fault."""


class EngineOutput:
    """The last lines of the engine, each with the monotonic second of its arrival. One thread adds, another reads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: collections.deque[tuple[float, str]] = collections.deque(maxlen=_KEPT_LINES)

    def add(self, line: str) -> None:
        """Keep a line."""
        self._lines.append((self._clock(), line))

    def cause(self, since_s: float = float("-inf")) -> str:
        """Return the cause that the engine printed from this second on; empty if there is none.

        A traceback that began before is still known for a consequence.
        """
        kept = list(self._lines)
        return find_cause((line for _, line in kept), sum(at_s < since_s for at_s, _ in kept))

    def last(self) -> list[str]:
        """Return the last lines, repetitions folded, without the tracebacks that are only a consequence."""
        return fold(without_consequences(line for _, line in list(self._lines)))[-_REPEATED_LINES:]


def fold(lines: Sequence[str]) -> list[str]:
    """Collapse consecutive repeats of a block into one copy and a count.

    vLLM prints one traceback for each stream when its engine dies: a hundred of them would push out the one that
    names the cause. Times, process ids and request ids may differ.
    """
    keys = [_IDENTITY.sub("", without_prefix(line)) for line in lines]
    folded: list[str] = []
    at = 0
    while at < len(lines):
        size, again = _repetition(keys, at)
        folded.extend(lines[at : at + size])
        if again:
            what = "this line" if size == 1 else f"these {size} lines"
            folded.append(f"... {what} {again} more time{'' if again == 1 else 's'}")
        at += size * (1 + again)
    return folded


def _repetition(keys: Sequence[str], at: int) -> tuple[int, int]:
    """Return the size of the block at `at` that saves most lines, and its repetitions: (1, 0) for none."""
    best = (1, 0)
    for size in range(1, min(_LONGEST_BLOCK_LINES, (len(keys) - at) // 2) + 1):
        block, again = keys[at : at + size], 0
        while keys[at + size * (again + 1) : at + size * (again + 2)] == block:
            again += 1
        if size * again > best[0] * best[1]:
            best = (size, again)
    return best
