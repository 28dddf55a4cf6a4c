"""Limits how many requests have decoded images in memory.

vLLM 0.20.2 decodes the images of all requests in flight as they arrive, and shrinks them one request after the other,
in one thread (`renderers/base.py`). 40 requests of 1.5 kB, with three images of 3840 x 2160 each, took the server from
0.9 to 8.8 GiB.
"""

import asyncio
import weakref
from typing import Any

REQUESTS = 3
"""While the images of one are shrunk, those of the others are decoded."""


class Turn:
    """One request's permit for decoded images: from its first image until the last is freed, or the request ends."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._free: asyncio.Semaphore | None = None
        self._images = 0

    async def begin(self, free: asyncio.Semaphore) -> None:
        """Wait until the request may decode an image; only the first image of a request waits."""
        async with self._lock:
            if self._free is None:
                await free.acquire()
                self._free = free
            self._images += 1

    def hold(self, image: Any) -> None:
        """Drop this decoded image when nothing refers to it any more; call this on the event loop."""
        weakref.finalize(image, asyncio.get_running_loop().call_soon_threadsafe, self.drop).atexit = False

    def drop(self) -> None:
        """Count an image less, and end with the last one."""
        self._images -= 1
        if self._images == 0:
            self.end()

    def end(self) -> None:
        """Let another request begin; a second call does nothing."""
        if self._free is not None:
            self._free.release()
            self._free = None
