"""The mistakes of one file, collected until all of them are known."""

import json
from pathlib import Path

from servekit.errors import Finding

WHOLE_FILE = 0
"""The line of a mistake that belongs to no single line, such as a missing key."""

SHOWN_CHARACTERS = 60


class UnreadableError(Exception):
    """Reading cannot continue; the reason is among the mistakes."""


class Mistakes:
    """Collects the mistakes of the file `path`, in any order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[Finding] = []

    def add(self, line: int, message: str, *, key: str = "", got: str = "", remedy: str = "") -> None:
        """Add a mistake at `line` of the file, counted from 1, or at the `WHOLE_FILE`."""
        self.found.append(Finding(message, file=str(self.path), line=line, key=key, got=got, remedy=remedy))

    def unreadable(self, line: int, message: str, *, got: str = "", remedy: str = "") -> UnreadableError:
        """Add a mistake after which nothing more can be read, and return the exception to raise."""
        self.add(line, message, got=got, remedy=remedy)
        return UnreadableError()


def shown(value: object) -> str:
    """Return a value as the file would have it, cut to a readable length."""
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
