"""Requests between the guard and EngineCore: a drain may begin only when there is none.

vLLM 0.20.2 answers a request that EngineCore meets after SIGTERM with an empty completion and no error
(`v1/engine/core.py`, `_reject_add_in_shutdown`), and one whose prompt is still being rendered then with 500. Which
requests are on that way is told by `AsyncLLM.add_request`, which ends when the request was sent to EngineCore.
"""

import asyncio
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from ..images.image_cache import Unsent
from .admission import Admitted, Model, admit

_request: "ContextVar[TrackedRequest | None]" = ContextVar("servekit_request", default=None)
"""The client's request a piece of vLLM's work belongs to; the tasks vLLM makes for it inherit it."""


def current_unsent() -> Unsent | None:
    """Return the images of the request that this piece of work belongs to; None for servekit's own."""
    request = _request.get()
    return request.unsent if request is not None else None


class TooLateError(Exception):
    """A request that would reach EngineCore after the drain has begun, and be answered with nothing."""


class Handoff:
    """Which requests were passed on to vLLM and have not reached its EngineCore."""

    def __init__(self) -> None:
        self._underway: set[object] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._engine: Any = None
        self._closed = False

    def watch(self, engine: Any) -> None:
        """Stand at the door of vLLM's engine client (`AsyncLLM`): look at each request, and learn when it was sent."""
        self._engine = engine
        add_request = engine.add_request
        model = Model(engine.model_config.get_vocab_size(), engine.model_config.max_model_len)

        async def add_and_tell(request_id: str, prompt: Any, params: Any, *arguments: Any, **named: Any) -> Any:
            request = _request.get()
            if request is not None:
                if self._closed:
                    raise TooLateError("the server is draining: the request came too late for it")
                admit(request.admitted, prompt, params, model)
            added = await add_request(request_id, prompt, params, *arguments, **named)
            if request is not None:
                request.unsent.sent(prompt)
            self.leave(request)
            return added

        engine.add_request = add_and_tell

    def follow(self) -> "TrackedRequest":
        """Count what is done within a `with` of this as one request, until it has reached EngineCore or has ended."""
        return TrackedRequest(self)

    async def settle(self, within_s: float) -> bool:
        """Wait until EngineCore has every request, then let no other through; return whether it has them.

        At most `within_s` seconds, which are taken off the time vLLM gives its EngineCore after SIGTERM.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(within_s):
                await self._empty.wait()
                # EngineCore takes what it is sent in order: its answer to this means that it has all before it.
                await self._engine.engine_core.get_supported_tasks_async()
        except Exception:  # noqa: BLE001 - a dead engine, a slow one, another vLLM: the drain goes on without
            return False
        else:
            return True
        finally:
            self._closed = True
            self._take_off(loop.time() - began_s)

    def enter(self, request: object) -> None:
        """Count a request as underway."""
        self._underway.add(request)
        self._empty.clear()

    def leave(self, request: object | None) -> None:
        """Count it no more; of one that is not counted, nothing."""
        self._underway.discard(request)
        if not self._underway:
            self._empty.set()

    def _take_off(self, seconds: float) -> None:
        """Shorten the time that vLLM's server (`entrypoints/launcher.py`) reads when SIGTERM comes."""
        config = getattr(self._engine, "vllm_config", None)
        if config is not None:
            config.shutdown_timeout = max(0.0, config.shutdown_timeout - seconds)


class TrackedRequest:
    """One request on its way; leaving the `with` ends it, however that happens."""

    __slots__ = ("_before", "_passage", "admitted", "unsent")

    def __init__(self, passage: Handoff) -> None:
        self._passage = passage
        self.admitted = Admitted()
        self.unsent = Unsent()

    def __enter__(self) -> None:
        self._passage.enter(self)
        self._before: Token[TrackedRequest | None] = _request.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _request.reset(self._before)
        self._passage.leave(self)
        self.unsent.end()
