"""The guard with a bypass, for `guard_overhead.py` only: a request with `x-bare` goes straight to vLLM.

The same engine serves both within the same minute, so that only the guard differs. It also reports when requests
arrived and when EngineCore had them.
"""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servekit.serve.guard.inside.servekit_guard.asgi import App, Receive, Scope, Send, answer_json
    from servekit.serve.guard.inside.servekit_guard.entry import Guard
else:
    from servekit_guard.asgi import App, Receive, Scope, Send, answer_json
    from servekit_guard.entry import Guard


PATH = "/handed-over"
"""Returns the seconds from the first request since the last call to each hand-over."""
BARE = (b"x-bare", b"1")


class Switch(Guard):
    """The guard, or no guard, as the request says."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._came_s = 0.0
        self._handed_over_s: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request marked `x-bare` to vLLM as if there were no guard."""
        if scope["type"] == "lifespan":
            self._watch(scope["app"].state.engine_client)
        elif scope["path"] == PATH:
            handed_over_s, self._handed_over_s, self._came_s = self._handed_over_s, [], 0.0
            await answer_json(send, handed_over_s)
            return
        else:
            self._came_s = self._came_s or time.perf_counter()
        if scope["type"] == "http" and BARE in scope["headers"]:
            await self._app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def _watch(self, engine: Any) -> None:
        add_request = engine.add_request

        async def add_and_note(*arguments: Any, **named: Any) -> Any:
            added = await add_request(*arguments, **named)
            self._handed_over_s.append(time.perf_counter() - self._came_s)
            return added

        engine.add_request = add_and_note
