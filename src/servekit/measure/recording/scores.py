"""Results that only the command knows, such as an accuracy: it writes them where `measure` tells it to."""

import json
from pathlib import Path
from typing import Final

SCORES_VARIABLE: Final = "MEASURE_SCORES_FILE"
"""Not SERVEKIT_...: a servekit below the command would take that for a setting of its own."""


def read_scores(path: Path) -> dict[str, float]:
    """Return the numbers of a JSON object by name; those that are no number are left out, empty without such a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {str(name): float(value) for name, value in known if type(value) in {int, float}}
