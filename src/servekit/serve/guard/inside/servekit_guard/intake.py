"""What is in flight: slots for requests, and the bytes of their bodies, counted while they arrive."""

import asyncio
from types import TracebackType
from typing import Self

from .guard_config import Rules
from .refusals import Message, Receive, RefusedError, Scope, draining, too_busy, too_large, too_slow

MAX_LENGTH_DIGITS = 18
"""What fits 64 bits; HTTP parsers refuse more."""
LONGEST_SWEEP_S = 1.0
"""A body that is late is refused this much later at most, or a tenth of the time it has."""


class ClientGoneError(Exception):
    """The client hung up before its request was complete; nobody is left to answer."""


class Intake:
    """How much is in flight now, and the limits of it."""

    def __init__(self, rules: Rules) -> None:
        self.in_flight = 0
        self.buffered_bytes = 0
        self.structured_weight = 0
        """Of the structured output in flight: what EngineCore spends on its masks for every token, 0.02 ms a unit."""
        self._rules = rules
        self._too_large = too_large(rules.max_body_bytes)
        self._too_slow = too_slow(rules.max_body_s)
        self._too_busy = too_busy(rules.retry_after_s)
        self._draining = draining(rules.retry_after_s)
        self._closed = False
        self._reading: dict[asyncio.Timeout, float] = {}
        """The bodies that are on their way, and the loop's time until which each may be."""
        self._sweeping = False

    def close(self) -> None:
        """Take nothing in any more; who still sends a body is refused at once, not when it has arrived."""
        self._closed = True
        for limit in self._reading:
            _end(limit)

    def check(self, *, unread: bool) -> None:
        """Raise RefusedError (503) once closed; `unread`: a body may follow."""
        if self._closed:
            raise RefusedError(self._draining, unread=unread)

    def enter(self) -> "Slot":
        """Return a slot to be used in a `with`; raises RefusedError (429) when none is free."""
        if self.in_flight >= self._rules.max_in_flight:
            raise RefusedError(self._too_busy)
        return Slot(self)

    async def read(self, slot: "Slot", scope: Scope, receive: Receive) -> list[bytes]:
        """Return the request's whole body as it came. Raises RefusedError (408, 413, 429, 503) or ClientGoneError."""
        self._reserve(slot, _declared_bytes(scope), unread=True)
        limit, loop = asyncio.timeout(None), asyncio.get_running_loop()
        self._reading[limit] = loop.time() + self._rules.max_body_s
        if not self._sweeping:
            self._sweep(loop)
        try:
            async with limit:
                return await self._collect(slot, receive)
        except TimeoutError:
            self.check(unread=True)
            raise RefusedError(self._too_slow) from None
        finally:
            del self._reading[limit]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the reads that are late, again and again while there are any.

        A timer for every body would cost a request more than its body does, which is there as a rule.
        """
        now_s = loop.time()
        for limit, until_s in self._reading.items():
            if until_s <= now_s:
                _end(limit)
        self._sweeping = bool(self._reading)
        if self._sweeping:
            loop.call_later(min(LONGEST_SWEEP_S, self._rules.max_body_s / 10), self._sweep, loop)

    async def _collect(self, slot: "Slot", receive: Receive) -> list[bytes]:
        chunks: list[bytes] = []
        received_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            received_bytes += len(chunk)
            more = message.get("more_body", False)
            self._reserve(slot, received_bytes, unread=more)
            chunks.append(chunk)
            if not more:
                return chunks

    def _reserve(self, slot: "Slot", body_bytes: int, *, unread: bool) -> None:
        """Let the slot hold this many bytes at least; `unread`: more of the body may follow."""
        if body_bytes > self._rules.max_body_bytes:
            raise RefusedError(self._too_large, unread=unread)
        growth_bytes = body_bytes - slot.reserved_bytes
        if growth_bytes <= 0:
            return
        if self.buffered_bytes + growth_bytes > self._rules.max_buffered_bytes:
            raise RefusedError(self._too_busy, unread=unread)
        self.buffered_bytes += growth_bytes
        slot.reserved_bytes = body_bytes

    def weigh(self, slot: "Slot", weight: int) -> None:
        """Let the slot hold this weight of structured output; raises RefusedError (429) where others hold too much."""
        if self.structured_weight + weight > self._rules.max_structured_weight:
            raise RefusedError(self._too_busy)
        self.structured_weight += weight
        slot.weight += weight


class Slot:
    """One request's place; leaving the `with` gives all it holds back, however the request ended."""

    __slots__ = ("_intake", "reserved_bytes", "weight")

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.reserved_bytes = 0
        self.weight = 0

    def weigh(self, weight: int) -> None:
        """Hold a weight of structured output; raises RefusedError (429) where there is too much in flight."""
        self._intake.weigh(self, weight)

    def __enter__(self) -> Self:
        self._intake.in_flight += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._intake.in_flight -= 1
        self._intake.buffered_bytes -= self.reserved_bytes
        self._intake.structured_weight -= self.weight


def _end(limit: asyncio.Timeout) -> None:
    if not limit.expired():
        limit.reschedule(0)


def replay(chunks: list[bytes], receive: Receive) -> Receive:
    """Return a `receive` that hands out the body that was taken in, then what comes from the server.

    A chunk is let go when it is handed out, so that a body is in memory once, as it is without the guard.
    """
    chunks.reverse()

    async def receive_again() -> Message:
        if not chunks:
            return await receive()
        chunk = chunks.pop()
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    return receive_again


def _declared_bytes(scope: Scope) -> int:
    """Return the body's length as its header tells it; 0 for a chunked body, which is counted as it comes."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) <= MAX_LENGTH_DIGITS else 0
    return 0
