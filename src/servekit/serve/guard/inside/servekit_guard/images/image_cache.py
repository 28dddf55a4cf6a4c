"""vLLM's cache of images: an image that was never sent to EngineCore must not count as one that EngineCore has.

vLLM 0.20.2 keeps the hashes of processed images in its server, and sends EngineCore a known image by its hash alone
(`multimodal/cache.py`). It stores the hash when it processes the image, before it checks the request's other fields. So
after a request that was refused in between, or whose client disconnected, everyone who sent the same image got 500:
"Expected a cached item". This module forgets such hashes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any


@dataclass(slots=True)
class Unsent:
    """The images of one request that were not sent to EngineCore."""

    hashes: set[str] = field(default_factory=set)
    over: bool = False
    """The request has ended; images that are processed for it afterwards are forgotten immediately."""
    forget: Callable[[], object] | None = None

    def sent(self, prompt: Any) -> None:
        """Record that EngineCore has this prompt, vLLM's `EngineInput`, and its images."""
        self.hashes -= _hashes(prompt)

    def end(self) -> None:
        """Forget what was not sent."""
        self.over = True
        if self.hashes and self.forget is not None:
            self.forget()


def watch(renderer: Any, current_request: Callable[[], Any]) -> None:
    """Record what vLLM's renderer processes for the current request, and forget what is not sent.

    All of it runs in the renderer's one thread for images, like vLLM's own use of the cache.
    """
    process, executor, cache = renderer._process_multimodal, renderer._mm_executor, renderer.mm_processor.cache  # noqa: SLF001
    if cache is None:
        return

    def forget(unsent: Unsent) -> None:
        for each in unsent.hashes:
            cache._cache.pop(each, None)  # noqa: SLF001 - publicly it can only be cleared whole

    def process_and_record(request: Any, arguments: Any, named: Any) -> Any:
        try:
            inputs = process(*arguments, **named)
        except BaseException:
            cache.clear_cache()  # nothing shows which of the request's images it has stored
            raise
        if request is not None:
            request.unsent.hashes |= _hashes(inputs)
            request.unsent.forget = partial(executor.submit, forget, request.unsent)
            if request.unsent.over:
                forget(request.unsent)
        return inputs

    async def process_async(*arguments: Any, **named: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(
            executor, process_and_record, current_request(), arguments, named
        )

    renderer._process_multimodal_async = process_async  # noqa: SLF001


def _hashes(inputs: Any) -> set[str]:
    return {each for hashes in (inputs.get("mm_hashes") or {}).values() for each in hashes}
