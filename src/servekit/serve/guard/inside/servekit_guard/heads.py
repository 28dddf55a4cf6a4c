"""Limits on the request line and the headers, which uvicorn's fast HTTP parser does not have.

vLLM 0.20.2 offers `--h11-max-incomplete-event-size` and `--h11-max-header-count`, but uvicorn 0.46 uses
httptools where that is installed, and httptools has no such limit: one connection that never ends its
headers takes memory without end, and none is ever closed for being slow. No key is needed for that.
"""

import importlib
from typing import TYPE_CHECKING, Any

_Protocol: Any = Any if TYPE_CHECKING else object


def limit(max_head_bytes: int, max_head_s: float) -> None:
    """Put the limits on every connection of the uvicorn server that this process is about to start."""
    auto: Any = importlib.import_module("uvicorn.protocols.http.auto")
    auto.AutoHTTPProtocol = limited(auto.AutoHTTPProtocol, max_head_bytes, max_head_s)


def limited(base: Any, max_head_bytes: int, max_head_s: float) -> Any:
    """Return uvicorn's protocol class with the limits; one that is not httptools' raises TypeError."""
    if not hasattr(base, "on_message_begin"):
        raise TypeError(f"{base.__name__} has no parser callbacks: the guard cannot limit headers")
    limits = {"max_head_bytes": max_head_bytes, "max_head_s": max_head_s}
    return type("LimitedHeads", (LimitedHeads, base), limits)


class LimitedHeads(_Protocol):  # type: ignore[misc] # uvicorn is not installed where this is checked
    """Stands before uvicorn's protocol: counts what arrives until the headers are complete, and the time."""

    max_head_bytes: int
    max_head_s: float
    _clock: Any = None
    """Runs only while headers are incomplete: a timer for every request would cost more than reading them."""

    def connection_made(self, transport: Any) -> None:
        """Start the clock of the first request."""
        super().connection_made(transport)
        self._await_head()
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; refuse when it is too much and the headers still have no end."""
        super().data_received(data)
        if not self._in_head:
            return
        self._start_clock()
        self._head_bytes += len(data)
        if self._head_bytes > self.max_head_bytes and not self.transport.is_closing():
            self.send_400_response("Request headers are too large.")

    def on_message_begin(self) -> None:
        """Await the headers of a later request on the same connection: as a rule they came with it."""
        super().on_message_begin()
        if not self._in_head:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Stop the clock: what follows is the body, which the gate limits."""
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._in_head = True
        self._head_bytes = 0

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self.max_head_s, self._give_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        if self._in_head and not self.transport.is_closing():
            self.transport.close()
