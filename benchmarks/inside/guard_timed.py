"""The guard with a stopwatch, for `benchmarks/gpu` only: how long a request takes until vLLM gets it.

The guard adds a header to the answer and passes its pieces on at 0.1 us each, so this is all the time it adds to a
first token that does not wait for other requests. The wait for the body is not counted: vLLM alone waits for it too.
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
"""Returns the times since the last call."""
_WATCH = "servekit.watch"


class Watch:
    """Runs from its creation, except while the request's body is awaited."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._began_s = time.perf_counter()

    async def receive(self) -> Message:
        """Act as the server's `receive`, with the watch stopped."""
        asked_s = time.perf_counter()
        try:
            return await self._receive()
        finally:
            self._began_s += time.perf_counter() - asked_s

    def held_ms(self) -> float:
        """Return the milliseconds so far."""
        return 1000 * (time.perf_counter() - self._began_s)


class Timed(Guard):
    """The guard; times each request from its headers until it is passed on."""

    def __init__(self, app: App) -> None:
        """Wrap the guard on both sides."""
        self._behind = Behind(app)
        super().__init__(self._behind)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start the watch, then act as the guard."""
        if scope["type"] == "http" and scope["path"] == PATH:
            await answer_json(send, self._behind.report())
            return
        watch = scope[_WATCH] = Watch(receive)
        await super().__call__(scope, watch.receive, send)


class Behind:
    """The application below the guard: stops the watch, and passes requests to vLLM."""

    def __init__(self, app: App) -> None:
        """Wrap vLLM's application; the guard sees this object as the next layer."""
        self.app = app
        self._held_ms: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the watch of a request that generates text."""
        if scope["type"] == "http" and scope["method"] == "POST":
            self._held_ms.append(scope[_WATCH].held_ms())
        await self.app(scope, receive, send)

    def report(self) -> dict[str, float | None]:
        """Return the number of requests with the median and 99th percentile of their milliseconds, and reset them."""
        held_ms, self._held_ms = sorted(self._held_ms), []
        last = len(held_ms) - 1
        return {
            "requests": len(held_ms),
            "median_ms": round(statistics.median(held_ms), 3) if held_ms else None,
            "p99_ms": round(held_ms[round(0.99 * last)], 3) if held_ms else None,
        }
