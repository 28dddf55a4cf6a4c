"""The entry point for `vllm serve --middleware servekit_guard.entry.Guard`: import it in vLLM's process only.

vLLM imports it while it builds its application, before the server starts to listen. Any error here ends the start, so
that no engine runs without its guard.
"""

import logging
import os

from . import vllm_patches
from .asgi import App, Receive, Scope, Send
from .core import embeddings, worker
from .gate import Gate
from .guard_config import CONFIG_VARIABLE, Rules
from .routes import CLIENT_ROUTES

logger = logging.getLogger("vllm.servekit_guard")

RULES = Rules.read(os.environ[CONFIG_VARIABLE])

if not worker.registered:
    raise RuntimeError(f"vLLM did not load the plugin {worker.PLUGIN!r}: VLLM_PLUGINS is set and must name it")
UNREAD = vllm_patches.apply_at_import(RULES)
if RULES.api_keys_file is None:
    logger.warning("authentication is off: anyone who can reach this port can use the model")


class Guard(Gate):
    """The gate with this process's rules, in the form vLLM expects of its middleware."""

    def __init__(self, app: App) -> None:
        super().__init__(app, RULES)
        UNREAD.report = self.count_unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Patch vLLM when its lifespan begins, for its handlers exist by then; otherwise act as the gate."""
        if scope["type"] == "lifespan":
            app = scope["app"]
            vllm_patches.apply(app, self._app, [route.path for route in CLIENT_ROUTES if route.generates])
            self.handoff.watch(app.state.engine_client)
            client = app.state.engine_client
            self.worker = await embeddings.read_report(client)
            # In a drain EngineCore ends once it has no requests: those that are still being written have not failed.
            self.flights.engine_dead = lambda: bool(client.errored and client.output_processor.request_states)
            self.meter.engine_dead = self.flights.engine_dead
            self.meter.watch(client)
            self.meter.close_on_signal()
        await super().__call__(scope, receive, send)
