"""Requests in flight: slots for them, and the bytes of their bodies, counted while they arrive."""

import asyncio
from dataclasses import dataclass

from .asgi import Message, Receive, Scope
from .guard_config import Rules
from .refusals import RefusedError, draining, too_busy, too_large, too_slow

MAX_LENGTH_DIGITS = 18
"""What fits 64 bits; HTTP parsers reject more."""
LONGEST_SWEEP_S = 1.0
"""Longest delay between a body's deadline and its 408; a tenth of the body's time when that is shorter."""


class ClientGoneError(Exception):
    """The client closed its connection before its request was complete; there is nobody to answer."""


@dataclass(slots=True)
class Slot:
    """What one request holds."""

    reserved_bytes: int = 0
    weight: int = 0


class Intake:
    """How much is in flight now, and its limits."""

    def __init__(self, rules: Rules) -> None:
        self.in_flight = 0
        self.buffered_bytes = 0
        self.structured_weight = 0
        """Of the structured output in flight: EngineCore needs 0.02 ms per unit and token to fill its masks."""
        self._rules = rules
        self._closed = False
        self._reading: dict[asyncio.Timeout, float] = {}
        """The deadline, in the loop's time, of each body that is arriving."""
        self._sweeping = False

    def close(self) -> None:
        """Accept nothing more; a client that is still sending a body is refused immediately."""
        self._closed = True
        for limit in self._reading:
            _expire(limit)

    def check(self, *, unread: bool) -> None:
        """Raise RefusedError (503) once closed; `unread`: a body may follow."""
        if self._closed:
            raise RefusedError(draining(self._rules.retry_after_s), unread=unread)

    def enter(self) -> Slot:
        """Return a slot, for `leave` to take back; raises RefusedError (429) when none is free."""
        if self.in_flight >= self._rules.max_in_flight:
            raise RefusedError(too_busy(self._rules.retry_after_s))
        self.in_flight += 1
        return Slot()

    def leave(self, slot: Slot) -> None:
        """Take back a slot and all it holds."""
        self.in_flight -= 1
        self.buffered_bytes -= slot.reserved_bytes
        self.structured_weight -= slot.weight

    async def read(self, slot: Slot, scope: Scope, receive: Receive) -> list[bytes]:
        """Return the request's whole body in the pieces that arrived.

        Raises RefusedError (408, 413, 429, 503) or ClientGoneError.
        """
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
            raise RefusedError(too_slow(self._rules.max_body_s)) from None
        finally:
            del self._reading[limit]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the reads that are past their deadline, repeatedly while there are any reads.

        A timer for every body would cost more than reading the body, which has usually arrived already.
        """
        now_s = loop.time()
        for limit, until_s in self._reading.items():
            if until_s <= now_s:
                _expire(limit)
        self._sweeping = bool(self._reading)
        if self._sweeping:
            loop.call_later(min(LONGEST_SWEEP_S, self._rules.max_body_s / 10), self._sweep, loop)

    async def _collect(self, slot: Slot, receive: Receive) -> list[bytes]:
        chunks: list[bytes] = []
        received_bytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunks.append(message.get("body", b""))
            received_bytes += len(chunks[-1])
            more = message.get("more_body", False)
            self._reserve(slot, received_bytes, unread=more)
        return chunks

    def _reserve(self, slot: Slot, body_bytes: int, *, unread: bool) -> None:
        """Let the slot hold at least this many bytes; `unread`: more of the body may follow."""
        if body_bytes > self._rules.max_body_bytes:
            raise RefusedError(too_large(self._rules.max_body_bytes), unread=unread)
        growth_bytes = body_bytes - slot.reserved_bytes
        if growth_bytes <= 0:
            return
        if self.buffered_bytes + growth_bytes > self._rules.max_buffered_bytes:
            raise RefusedError(too_busy(self._rules.retry_after_s), unread=unread)
        self.buffered_bytes += growth_bytes
        slot.reserved_bytes = body_bytes

    def weigh(self, slot: Slot, weight: int) -> None:
        """Let the slot hold this weight of structured output; raises RefusedError (429) when too much is in flight."""
        if self.structured_weight + weight > self._rules.max_structured_weight:
            raise RefusedError(too_busy(self._rules.retry_after_s))
        self.structured_weight += weight
        slot.weight += weight


def _expire(limit: asyncio.Timeout) -> None:
    if not limit.expired():
        limit.reschedule(0)


def replay(chunks: list[bytes], receive: Receive) -> Receive:
    """Return a `receive` that returns the pieces of the body that was read, then what comes from the server.

    A piece is released when it is returned, so that a body is in memory once, as it is without the guard.
    """
    chunks.reverse()

    async def receive_again() -> Message:
        if not chunks:
            return await receive()
        chunk = chunks.pop()
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    return receive_again


def _declared_bytes(scope: Scope) -> int:
    """Return the body's length from its header; 0 for a chunked body, which is counted as it arrives."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) <= MAX_LENGTH_DIGITS else 0
    return 0
