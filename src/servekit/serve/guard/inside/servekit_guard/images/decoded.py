"""How many requests may have decoded images in memory at once.

vLLM 0.20.2 decodes the images of every request in flight as they come, and makes them smaller one request after the
other, in one thread (`renderers/base.py`). 40 requests of 1.5 kB, with three images of 3840 x 2160 each, took the
server from 0.9 to 8.8 GiB.
"""

import asyncio
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

REQUESTS = 3
"""The images of one are made smaller while those of the others are decoded."""


class Turn:
    """One request's right to have decoded images: from its first one until the last is dropped, or the request ends."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._free: asyncio.Semaphore | None = None
        self._images = 0

    async def begin(self, free: asyncio.Semaphore) -> None:
        """Wait before an image until its request may have decoded ones; only the first one of a request waits."""
        async with self._lock:
            if self._free is None:
                await free.acquire()
                self._free = free
            self._images += 1

    def hold(self, image: Any) -> None:
        """Drop this decoded image when nobody has it any more; called on the event loop."""
        soon = asyncio.get_running_loop().call_soon_threadsafe
        weakref.finalize(image, soon, self.drop).atexit = False

    def drop(self) -> None:
        """End if this was the last image."""
        self._images -= 1
        if self._images == 0:
            self.end()

    def end(self) -> None:
        """Let another request begin; nothing happens the second time."""
        if self._free is not None:
            self._free.release()
            self._free = None


_TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)


@contextmanager
def request_turn() -> Iterator[None]:
    """Let what is called inside, in tasks of its own too, be one request."""
    turn = Turn()
    _TURN.set(turn)
    try:
        yield
    finally:
        turn.end()


def current_turn() -> Turn:
    """Return the turn of the request that is being served."""
    return _TURN.get() or Turn()
