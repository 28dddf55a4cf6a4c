"""The architectures vLLM 0.20.2 generates text with; a test compares the list with the installed engine.

Source: vLLM 0.20.2, model_executor/models/registry.py, its text generation and multimodal models.
"""

from importlib.resources import files
from typing import Final

KNOWN_ARCHITECTURES: Final = frozenset(
    (files("servekit.preflight") / "architectures.txt").read_text(encoding="utf-8").split()
)
