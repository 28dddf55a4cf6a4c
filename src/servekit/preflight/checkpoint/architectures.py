"""The architectures vLLM 0.20.2 generates text with; a test compares the list with the installed engine.

Source: vLLM 0.20.2, model_executor/models/registry.py, its text generation and multimodal models.
"""

from pathlib import Path
from typing import Final

_ROWS: Final = Path(__file__).parents[1].joinpath("architectures.txt").read_text(encoding="utf-8").splitlines()

KNOWN_ARCHITECTURES: Final = frozenset(row.split()[0] for row in _ROWS)
MULTIMODAL_ARCHITECTURES: Final = frozenset(row.split()[0] for row in _ROWS if row.endswith(" multimodal"))
"""Those that take more than text."""
