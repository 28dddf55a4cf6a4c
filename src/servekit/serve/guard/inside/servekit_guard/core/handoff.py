"""Requests between the guard and EngineCore: a drain may begin only when there are none.

vLLM 0.20.2 answers a request that EngineCore receives after SIGTERM with an empty completion and no error
(`v1/engine/core.py`, `_reject_add_in_shutdown`), and one whose prompt is still being rendered then with 500.
`AsyncLLM.add_request` shows which requests are on their way: it returns once the request was sent to EngineCore.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..images.decoded import Turn
from ..images.image_cache import Unsent
from .admission import Admitted, Model, admit


@dataclass(slots=True, eq=False)
class TrackedRequest:
    """A client's request while vLLM works on it."""

    admitted: Admitted = field(default_factory=Admitted)
    unsent: Unsent = field(default_factory=Unsent)
    turn: Turn = field(default_factory=Turn)


_request: ContextVar[TrackedRequest | None] = ContextVar("servekit_request", default=None)
"""The client's request that the running code works for; the tasks vLLM starts for it inherit it."""


current_request = _request.get
"""Returns the client's request that the running code works for; None for servekit's own."""


class TooLateError(Exception):
    """A request would reach EngineCore after the drain has begun, and get an empty answer."""


class Handoff:
    """The requests that vLLM was given and that have not reached its EngineCore."""

    def __init__(self, penalised_tokens: int | None = None) -> None:
        self.model = Model(penalised_tokens=penalised_tokens)
        self._underway: set[TrackedRequest] = set()
        self._empty: asyncio.Event | None = None
        """Set when nothing is underway; exists while a drain waits for it."""
        self._engine: Any = None
        self._closed = False

    def watch(self, engine: Any) -> None:
        """Wrap `add_request` of vLLM's engine client (`AsyncLLM`): check each request, and learn when it was sent."""
        self._engine = engine
        add_request = engine.add_request
        config = engine.model_config
        self.model = Model(config.get_vocab_size(), config.max_model_len, self.model.penalised_tokens)

        async def check_and_add(request_id: str, prompt: Any, params: Any, *arguments: Any, **named: Any) -> Any:
            request = _request.get()
            if request is None:
                return await add_request(request_id, prompt, params, *arguments, **named)
            if self._closed:
                raise TooLateError("the server is draining: the request came too late")
            admit(request.admitted, prompt, params, self.model)
            added = await add_request(request_id, prompt, params, *arguments, **named)
            request.unsent.sent(prompt)
            self._leave(request)
            return added

        engine.add_request = check_and_add

    @contextmanager
    def track(self) -> Iterator[None]:
        """Treat what runs within this `with` as one request: underway until it has reached EngineCore or has ended."""
        request = TrackedRequest()
        self._underway.add(request)
        before = _request.set(request)
        try:
            yield
        finally:
            _request.reset(before)
            self._leave(request)
            request.unsent.end()
            request.turn.end()

    async def settle(self, within_s: float) -> bool:
        """Wait until EngineCore has every request, then let no other through; return whether it has them.

        This takes at most `within_s` seconds. They are subtracted from the time vLLM's server
        (`entrypoints/launcher.py`) gives its EngineCore after SIGTERM.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(within_s):
                if self._underway:
                    self._empty = asyncio.Event()
                    await self._empty.wait()
                # EngineCore processes its messages in order: its answer to this one means that it has all before it.
                await self._engine.engine_core.get_supported_tasks_async()
        except Exception:  # noqa: BLE001 - a dead engine, a slow one, another vLLM: the drain continues without it
            return False
        else:
            return True
        finally:
            self._closed = True
            if (config := getattr(self._engine, "vllm_config", None)) is not None:
                config.shutdown_timeout = max(0.0, config.shutdown_timeout - (loop.time() - began_s))

    def _leave(self, request: TrackedRequest) -> None:
        self._underway.discard(request)
        if self._empty is not None and not self._underway:
            self._empty.set()
