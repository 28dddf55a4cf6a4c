"""The guard: one ASGI class inside vLLM's own server that lets nothing through by default.

This folder's parent is the only thing of servekit on the engine's `PYTHONPATH`, and this package the only
name in it. It is standard library code; what it must take from vLLM, Pillow and uvicorn it takes from the
process it runs in (`engine.py`). servekit itself imports the parts that both sides must agree on:
`rules.py` and `keyring.py`.
"""

from .gate import Gate
from .guard_config import Rules

__all__ = ["Gate", "Rules"]
