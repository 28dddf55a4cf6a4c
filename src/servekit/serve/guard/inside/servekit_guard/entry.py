"""The entry point for `vllm serve --middleware servekit_guard.entry.Guard`: import it in vLLM's process only.

vLLM imports it while it builds its application, before the server starts to listen. Whatever goes wrong here
ends the start, so there is no engine without its guard.
"""

import gc
import logging
import os

from . import client_mistakes, header_limits, models, request_ids, slow_readers, validation
from .core import worker
from .core.handoff import current_unsent
from .gate import CHECKED_BODY, CLIENT_ROUTES, Gate
from .guard_config import CONFIG_VARIABLE, Rules
from .images import image_cache, media
from .refusals import App, Receive, Scope, Send

logger = logging.getLogger("vllm.servekit_guard")

OBJECTS_BEFORE_GARBAGE = 10_000
"""How many objects Python makes before it looks for garbage among them. Its own 700 are made by some thirty requests,
which are all alive still: it found nothing and took 2 % of the server's time, of a burst's 9 %."""

RULES = Rules.read(os.environ[CONFIG_VARIABLE])

if not worker.registered:
    raise RuntimeError(f"vLLM did not load the plugin {worker.PLUGIN!r}: VLLM_PLUGINS must name it where it is set")
media.register(RULES.max_image_pixels, RULES.media_domains)
gc.set_threshold(OBJECTS_BEFORE_GARBAGE, *gc.get_threshold()[1:])
validation.read_checked_bodies(CHECKED_BODY)
header_limits.limit(RULES.max_head_bytes, RULES.max_head_s)
UNREAD = slow_readers.watch(RULES.max_write_s)
if RULES.api_keys_file is None:
    logger.warning("The guard asks for no key: everybody who reaches this port may use the model")


class Guard(Gate):
    """The gate with this process's rules, in the form vLLM wants its middleware."""

    def __init__(self, app: App) -> None:
        super().__init__(app, RULES)
        UNREAD.tell = self.count_unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do as the gate does; vLLM's handlers exist when the server begins its life."""
        if scope["type"] == "lifespan":
            app, kinds = scope["app"], client_mistakes.kinds_of_mistake()
            client_mistakes.answer_where_they_happen(self._app, app.exception_handlers[Exception], kinds)
            client_mistakes.answer_wrong_fields(self._app)
            client_mistakes.answer_messages(app.state, kinds)
            image_cache.watch(app.state.engine_client.renderer, current_unsent)
            client_mistakes.answer_images_without_a_place(app.state.engine_client.renderer)
            validation.stop_at_first_mistakes(app.routes, [route.path for route in CLIENT_ROUTES if route.generates])
            models.hide_paths(app.state)
            request_ids.name_responses(app.state)
            self.passage.watch(app.state.engine_client)
            self.flights.engine_dead = lambda: bool(app.state.engine_client.errored)
        await super().__call__(scope, receive, send)
