"""The guard with a stopwatch, for `benchmarks/gpu` only: how long a request is held before vLLM gets it.

The guard adds a header to the answer and hands its pieces on at 0.1 us each, so this is all the time it adds to a first
token that waits for no other request's. The wait for the body is not in it: vLLM alone waits for it too.
"""

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servekit.serve.guard.inside.servekit_guard.asgi import App, Message, Receive, Scope, Send, answer_json
    from servekit.serve.guard.inside.servekit_guard.entry import Guard
else:
    from servekit_guard.asgi import App, Message, Receive, Scope, Send, answer_json
    from servekit_guard.entry import Guard

PATH = "/guard-times"
"""Asked here, it answers with the times since it was asked last."""
_WATCH = "servekit.watch"


class Watch:
    """Runs from its making on, but for the waits for the request's body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._began_s = time.perf_counter()

    async def receive(self) -> Message:
        """Do as the server's `receive` does, the watch stopped."""
        asked_s = time.perf_counter()
        try:
            return await self._receive()
        finally:
            self._began_s += time.perf_counter() - asked_s

    def held_ms(self) -> float:
        """Return the milliseconds so far."""
        return 1000 * (time.perf_counter() - self._began_s)


class Timed(Guard):
    """The guard; each request is timed from its headers to the moment it is passed on."""

    def __init__(self, app: App) -> None:
        """Stand around the guard: before it and behind it."""
        self._behind = Behind(app)
        super().__init__(self._behind)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start the watch, and do as the guard does."""
        if scope["type"] == "http" and scope["path"] == PATH:
            await answer_json(send, self._behind.report())
            return
        watch = scope[_WATCH] = Watch(receive)
        await super().__call__(scope, watch.receive, send)


class Behind:
    """What the guard passes requests on to: stops the watch, and hands them to vLLM."""

    def __init__(self, app: App) -> None:
        """Stand before vLLM's application; the guard finds it as the next layer."""
        self.app = app
        self._held_ms: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the watch of a request that generates."""
        if scope["type"] == "http" and scope["method"] == "POST":
            self._held_ms.append(scope[_WATCH].held_ms())
        await self.app(scope, receive, send)

    def report(self) -> dict[str, float | None]:
        """Return the number of requests, and the median and 99th percentile of their milliseconds; forget them."""
        held_ms, self._held_ms = sorted(self._held_ms), []
        last = len(held_ms) - 1
        return {
            "requests": len(held_ms),
            "median_ms": round(statistics.median(held_ms), 3) if held_ms else None,
            "p99_ms": round(held_ms[round(0.99 * last)], 3) if held_ms else None,
        }
