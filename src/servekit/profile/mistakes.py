"""The mistakes of one file, collected until all of them are known."""

import json
from pathlib import Path

from servekit.errors import ConfigurationError, Mistake

WHOLE_FILE = 0
"""The line number of a mistake that no single line is to blame for, such as a missing key."""

SHOWN_CHARACTERS = 60


class Mistakes:
    """Collects mistakes with their lines, in whatever order they are found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[tuple[float, Mistake]] = []

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._found)

    def add(self, line: int, message: str, *, key: str = "", got: str = "", remedy: str = "") -> None:
        """Note one mistake at `line` of the file, counted from 1, or at the `WHOLE_FILE`."""
        where = f"{self.path}:{line}" if line else str(self.path)
        self.add_mistake(Mistake(where, message, key=key, got=got, remedy=remedy), line)

    def add_mistake(self, mistake: Mistake, line: int = WHOLE_FILE) -> None:
        """Note one mistake that may stand elsewhere, such as on a flag."""
        self._found.append((line or float("inf"), mistake))

    def error(self) -> ConfigurationError:
        """Give all of them as one error, in the order of the file."""
        return ConfigurationError([mistake for _, mistake in sorted(self._found, key=lambda item: item[0])])


def shown(value: object) -> str:
    """Give a value as it would stand in the file, cut to a readable length."""
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
