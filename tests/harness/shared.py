"""Engines that many tests share: each stops after the last of its tests, not at the end of the session.

So a worker that continues with tests that start their own engine holds one engine's memory, not two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from tests.harness.server import Server

_Kind = TypeVar("_Kind", bound=Server)
_shared: dict[str, Server] = {}


@contextmanager
def share(name: str, server: _Kind) -> Iterator[_Kind]:
    """Yield a server under the name of its fixture; `end_shared` or the end of the block stops it."""
    _shared[name] = server
    try:
        yield server
    finally:
        end_shared(name)


def end_shared(name: str) -> None:
    """Stop the server shared under this name, if there is one."""
    if server := _shared.pop(name, None):
        server.close()
