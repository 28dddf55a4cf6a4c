"""vLLM's cache of images: one that EngineCore was never sent must not be taken for one that it has.

vLLM 0.20.2 keeps the hashes of processed images in its server and sends EngineCore a known image by its hash alone
(`multimodal/cache.py`). It notes the hash when the image is processed, before it judges the request's other fields. So
after a request that was refused, or whose client hung up, in between, everybody who sent the same image was answered
500: "Expected a cached item". Here such hashes are forgotten again.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any


class Unsent:
    """The images of one request that EngineCore has not been sent."""

    __slots__ = ("forget", "hashes", "over")

    def __init__(self) -> None:
        self.hashes: set[str] = set()
        self.over = False
        """The request has ended; what is still processed for it is forgotten at once."""
        self.forget: Callable[[], None] | None = None

    def sent(self, prompt: Any) -> None:
        """Note that EngineCore has this prompt, vLLM's `EngineInput`, and its images."""
        self.hashes -= _hashes(prompt)

    def end(self) -> None:
        """Forget what was not sent."""
        self.over = True
        if self.hashes and self.forget is not None:
            self.forget()


def watch(renderer: Any, current: Callable[[], Unsent | None]) -> None:
    """Note what vLLM's renderer processes for the request that `current` returns, and forget what is not sent.

    All of it happens in the renderer's one thread for images, as its own use of the cache does.
    """
    process, executor, cache = renderer._process_multimodal, renderer._mm_executor, renderer.mm_processor.cache  # noqa: SLF001
    if cache is None:
        return

    def forget(unsent: Unsent) -> None:
        for each in unsent.hashes:
            cache._cache.pop(each, None)  # noqa: SLF001 - it can only be cleared whole

    def process_and_note(unsent: Unsent | None, arguments: Any, named: Any) -> Any:
        try:
            inputs = process(*arguments, **named)
        except BaseException:
            cache.clear_cache()  # it does not say which of the request's images it has noted
            raise
        if unsent is not None:
            unsent.hashes |= _hashes(inputs)
            unsent.forget = partial(executor.submit, forget, unsent)
            if unsent.over:
                forget(unsent)
        return inputs

    async def process_async(*arguments: Any, **named: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, process_and_note, current(), arguments, named)

    renderer._process_multimodal_async = process_async  # noqa: SLF001


def _hashes(inputs: Any) -> set[str]:
    return {each for hashes in (inputs.get("mm_hashes") or {}).values() for each in hashes}
