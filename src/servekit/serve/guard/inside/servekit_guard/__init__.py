"""The guard: an ASGI class inside vLLM's own server that denies by default.

This folder's parent is the only part of servekit on the engine's `PYTHONPATH`, and this package the only name in it. It
uses the standard library only; what it needs of vLLM, Pillow and uvicorn it imports in the process it runs in
(`entry.py`). servekit itself imports the parts that both sides must agree on, such as `guard_config.py` and
`keyring.py`.
"""
