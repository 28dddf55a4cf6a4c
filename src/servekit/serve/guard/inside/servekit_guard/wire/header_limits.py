"""Limits what uvicorn's fast HTTP parser accepts: endless heads and trailers, doubtful `Host` headers, and upgrades.

vLLM 0.20.2 offers `--h11-max-incomplete-event-size` and `--h11-max-header-count`, but uvicorn 0.46 uses httptools when
it is installed, and httptools has no such limit: one connection that never ends its headers takes unlimited memory, and
no connection is ever closed for being slow. That needs no key.
"""

import importlib
import re
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ..refusals import HEAD_TOO_LARGE, MALFORMED, WRONG_HOST, Refusal, RefusedError
from ..request_ids import new_id

_Protocol: Any = Any if TYPE_CHECKING else object

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
"""The characters of RFC 3986's host and port; a `/` or `?` would change the request's URL (CVE-2026-48710)."""


def limit(max_head_bytes: int, max_head_s: float) -> None:
    """Put the limits on every connection of the uvicorn server that this process is about to start."""
    auto: Any = importlib.import_module("uvicorn.protocols.http.auto")
    auto.AutoHTTPProtocol = limited(auto.AutoHTTPProtocol, max_head_bytes, max_head_s)


def limited(base: Any, max_head_bytes: int, max_head_s: float) -> Any:
    """Return uvicorn's protocol class with the limits; raises TypeError for a class that does not use httptools."""
    if not hasattr(base, "on_message_begin"):
        raise TypeError(f"{base.__name__} has no parser callbacks: the guard cannot limit headers")
    return type("LimitedHeads", (LimitedHeads, base), {"max_head_bytes": max_head_bytes, "max_head_s": max_head_s})


class _UnknownLength(int):
    """The length of an answer that ends with its connection: whatever uvicorn sends is within it, and completes it."""

    def __lt__(self, _sent_bytes: int) -> bool:
        return False

    def __sub__(self, _sent_bytes: int) -> "_UnknownLength":
        return self


class LimitedHeads(_Protocol):  # type: ignore[misc] # uvicorn is not installed where this is checked
    """Extends uvicorn's protocol: counts the bytes that arrive until the headers are complete, and the time."""

    parser: Any
    headers: list[tuple[bytes, bytes]]
    max_head_bytes: int
    max_head_s: float
    _in_head: bool = True
    _stalled_bytes: int = 0
    """The bytes since a head or a piece of a body was complete."""
    _clock: Any = None
    """Runs only while headers are incomplete: a timer for every request would cost more than reading the headers."""
    _refusal: Refusal = MALFORMED
    """The answer to an error of the parser."""
    _data: Any = b""
    """What the parser is reading."""
    _left: Any = b""
    """What the parser has not read yet: an upgrade makes it stop."""

    def connection_made(self, transport: Any) -> None:
        """Start the clock of the first request."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data; refuse the request when too much arrives without a complete head, body piece or message.

        Trailers and the extensions of chunks count like a head: the parser buffers them, and no body grows.
        """
        self._left = data
        while self._left and not self.transport.is_closing():
            self._data, self._left = self._left, b""
            self._advanced = False
            super().data_received(self._data)
            self._stalled_bytes = 0 if self._advanced else self._stalled_bytes + len(self._data)
            if self._stalled_bytes > self.max_head_bytes and not self.transport.is_closing():
                self._refuse(HEAD_TOO_LARGE)
        self._data = b""
        if self._in_head:
            self._start_clock()

    def on_message_begin(self) -> None:
        """Expect the headers of a later request on the same connection; usually they arrive with its first byte."""
        super().on_message_begin()
        if not self._in_head:
            self._in_head, self._stalled_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Check the head and stop the clock: the body follows, and the gate limits it.

        A RefusedError stops the parser; uvicorn then calls `send_400_response`.
        """
        if (refusal := self._check_head()) is not None:
            self._refusal = refusal
            raise RefusedError(refusal)
        self._in_head, self._advanced = False, True
        self._stop_clock()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scope["http_version"] == "1.0":
            self._answer_without_chunks()
        self.headers = []  # what follows are trailers, which are not headers (RFC 9110, 6.5.1)

    def _answer_without_chunks(self) -> None:
        """Mark the end of this answer by closing the connection (RFC 9112, 6.1 and 6.3).

        uvicorn 0.46 sends a stream in chunks to every client. nginx asks in HTTP/1.0 unless it is configured not to,
        and its clients got the chunks' sizes as text.
        """
        self.headers.append((b"connection", b"close"))  # makes uvicorn send the same
        self.cycle.chunked_encoding, self.cycle.expected_content_length = False, _UnknownLength()

    def on_body(self, body: bytes) -> None:
        """Record that the body grows."""
        self._advanced = True
        super().on_body(body)

    def handle_websocket_upgrade(self) -> None:
        """Ignore the upgrade, as RFC 9110, 7.8, allows; the guard accepts no websocket.

        uvicorn calls this for every upgrade, because of `_should_upgrade`. httptools then ends the message at the
        headers, whatever its body's length is, and has no option against it. So a new parser reads the headers again,
        without the one that requests the upgrade, and after them what follows.
        """
        stopped: Any = sys.exception()  # httptools.HttpParserUpgrade: where it stopped
        rest = memoryview(self._data)[stopped.args[0] :]
        if self.scope["method"] == "CONNECT":
            self._refuse(MALFORMED)
            return
        method, version = self.scope["method"].encode(), self.scope["http_version"].encode()
        line = b"%s %s HTTP/%s\r\n" % (method, self.url, version)
        headers = [b"%s: %s\r\n" % header for header in self.scope["headers"] if header[0] != b"upgrade"]
        self.parser = type(self.parser)(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        super().data_received(b"".join((line, *headers, b"\r\n")))
        self._left = rest

    def send_400_response(self, _msg: str) -> None:
        """Answer a request that the parser rejects, and close the connection."""
        if not self._owes_another_answer():
            headers, body = self._refusal.answer("", new_id())
            lines = [b"%s: %s\r\n" % header for header in (*self.server_state.default_headers, *headers)]
            status = HTTPStatus(self._refusal.status)
            line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
            self.transport.write(b"".join((line, *lines, b"connection: close\r\n\r\n", body)))
        self.transport.close()

    def _owes_another_answer(self) -> bool:
        """Return whether a refusal would mix with the answer to an earlier request, or with a part of this one's."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        return is_answering and bool(self._in_head or self.pipeline or self.cycle.response_started)

    def _should_upgrade(self) -> bool:
        """Pass every upgrade to `handle_websocket_upgrade`."""
        return True

    def _check_head(self) -> Refusal | None:
        if self._stalled_bytes + len(self._data) > self.max_head_bytes:  # the data may include a part of the body
            head_bytes = len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
            if head_bytes > self.max_head_bytes:
                return HEAD_TOO_LARGE
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1:
            return WRONG_HOST if hosts or self.parser.get_http_version() == "1.1" else None
        return None if _HOST.fullmatch(hosts[0]) else WRONG_HOST

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self.send_400_response(refusal.message)

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self.max_head_s, self.transport.close)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
