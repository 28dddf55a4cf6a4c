"""The limit of requests with decoded images, without vLLM."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.core.handoff import Handoff, current_request
from servekit.serve.guard.inside.servekit_guard.images.decoded import Turn


class Image:
    """A stand-in for a decoded image whose end the test can observe."""


class Server:
    """Requests that load images and keep them until the test releases them."""

    def __init__(self, places: int) -> None:
        self.handoff = Handoff()
        self.free = asyncio.Semaphore(places)
        self.loaded: list[str] = []
        self.kept: dict[str, list[Image]] = {}

    async def request(self, name: str, images: int, end: asyncio.Event) -> None:
        """Load this many images, each in its own task as vLLM does, and end when the test says so."""
        with self.handoff.track():
            self.kept[name] = list(await asyncio.gather(*(self.load(name) for _ in range(images))))
            await end.wait()

    async def load(self, name: str) -> Image:
        """Load one image of a request."""
        request, image = current_request(), Image()
        assert request is not None
        turn = request.turn
        await turn.begin(self.free)
        self.loaded.append(name)
        turn.hold(image)
        return image


async def settle() -> None:
    """Run the event loop until nothing is ready."""
    gc.collect()
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def run() -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Run a test on an event loop."""
    return lambda test: asyncio.run(test())


Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


def test_requests_wait_for_each_other(run: Run) -> None:
    """With two permits a third request decodes nothing until the last image of another request is freed."""

    async def scene() -> None:
        server, end = Server(2), asyncio.Event()
        tasks = [asyncio.create_task(server.request(name, 3, end)) for name in "abc"]
        await settle()
        assert sorted(server.loaded) == list("aaabbb")
        server.kept["a"].pop()
        await settle()
        assert "c" not in server.loaded
        server.kept["a"].clear()
        await settle()
        assert sorted(server.loaded) == list("aaabbbccc")
        end.set()
        await asyncio.gather(*tasks)
        assert not server.free.locked()

    run(scene)


def test_the_end_of_a_request_makes_room(run: Run) -> None:
    """A request that ends, or whose client is gone, releases its permit, even if its images still exist."""

    async def scene() -> None:
        server, end = Server(1), asyncio.Event()
        first = asyncio.create_task(server.request("a", 2, end))
        await settle()
        waiting = [asyncio.create_task(server.request(name, 1, end)) for name in "bc"]
        await settle()
        waiting[0].cancel()
        first.cancel()
        await settle()
        assert server.loaded == list("aac")
        end.set()
        await waiting[1]
        server.kept.clear()
        await settle()
        await server.free.acquire()
        assert server.free.locked(), "a permit was released twice"

    run(scene)


def test_an_image_that_cannot_be_loaded_makes_room(run: Run) -> None:
    """Outside a request, too, the permit is released with the last image."""

    async def scene() -> None:
        free = asyncio.Semaphore(1)
        turn = Turn()
        await turn.begin(free)
        turn.drop()
        await asyncio.wait_for(free.acquire(), 5)

    run(scene)


def test_one_request_never_waits_for_itself(run: Run) -> None:
    """Many images of one request need one permit."""

    async def scene() -> None:
        server, end = Server(1), asyncio.Event()
        end.set()
        await asyncio.wait_for(server.request("a", 100, end), 5)
        assert len(server.loaded) == 100

    run(scene)
