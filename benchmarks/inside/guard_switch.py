"""The guard with a way around it, for `guard_overhead.py` only: a request with `x-bare` goes straight to vLLM.

The same engine in the same minute then serves both, so nothing but the guard differs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servekit.serve.inside.servekit_guard.engine import Guard
    from servekit.serve.inside.servekit_guard.refusals import Receive, Scope, Send
else:
    from servekit_guard.engine import Guard
    from servekit_guard.refusals import Receive, Scope, Send


class Switch(Guard):
    """Guard, or nothing, as the request asks."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request marked `x-bare` to vLLM as if there were no guard."""
        if scope["type"] == "http" and any(name == b"x-bare" for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
