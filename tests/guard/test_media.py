"""The rules for images and headers, tested without vLLM and uvicorn."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.images.media import check_size, check_url, data_of
from servekit.serve.guard.inside.servekit_guard.wire.header_limits import limited


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "DATA:image/png;base64,AAAA"])
def test_a_data_url_is_accepted(url: str) -> None:
    """An image in the request needs no domain."""
    check_url(url, ())


@pytest.mark.parametrize(
    "url", ["http://a/", "https://a/", "file:///x", "ftp://a/", "httpx://a/", "//a/", "/x", "", " data:,", "\0data:,"]
)
def test_any_other_url_is_refused(url: str) -> None:
    """Nothing is fetched from anywhere when no domain is listed."""
    with pytest.raises(ValueError, match="data:image"):
        check_url(url, ())


def test_web_urls_are_left_to_vllm_when_domains_are_listed() -> None:
    """With domains, vLLM checks the host of web URLs; files are still refused."""
    check_url("https://images.example.org/a.png", ("images.example.org",))
    for url in ("file:///x", "ftp://images.example.org/", "httpx://images.example.org/"):
        with pytest.raises(ValueError, match="data:image"):
            check_url(url, ("images.example.org",))


def test_a_data_url_is_cut_without_a_parser() -> None:
    """Everything after the scheme is kept, as in vLLM's parser; vLLM parses other URLs."""
    for url in ("data:image/png;base64,AA+/", "DATA:image/png;base64,AA+/"):
        data = data_of(url)
        assert data is not None
        assert data.path == "image/png;base64,AA+/"
    assert data_of("https://images.example.org/data:") is None


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20, 1), (1000, 1000), (4000, 250)])
def test_a_size_within_the_limit_is_accepted(width: int, height: int) -> None:
    """Up to the limit of pixels and a ratio of twenty."""
    check_size(width, height, 1_000_000)


@pytest.mark.parametrize(("width", "height"), [(30000, 30000), (1001, 1000), (21, 1), (1, 21), (10, 0)])
def test_a_size_over_the_limit_is_refused(width: int, height: int) -> None:
    """An image with too many pixels, or too thin, is refused; the message has the size."""
    with pytest.raises(ValueError, match=f"{width} x {height}"):
        check_size(width, height, 1_000_000)


class Timer:
    """A timer of the fake event loop."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Forget the action."""
        self.action = None


class Protocol:
    """A stand-in for uvicorn's httptools protocol: a request's head goes from its first byte to a blank line."""

    def __init__(self) -> None:
        self.refusals: list[bytes] = []
        self.timers: list[Timer] = []
        self.loop = self.transport = self
        self.closed = self.begun = False
        self.lost = 0
        self.cycle = self.parser = None
        self.url = b""
        self.headers = [(b"host", b"x")]
        self.server_state = SimpleNamespace(default_headers=[])

    def call_later(self, _delay_s: float, action: Callable[[], None]) -> Timer:
        """Record a timer, as an event loop does."""
        self.timers.append(Timer(action))
        return self.timers[-1]

    def write(self, data: bytes) -> None:
        """Record what is sent, as a transport does."""
        self.refusals.append(data)

    def close(self) -> None:
        """Close, as a transport does."""
        self.closed = True

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self.closed

    cycle = None

    def connection_made(self, _transport: Any) -> None:
        """Begin."""

    def connection_lost(self, _error: Exception | None) -> None:
        """End."""
        self.lost += 1

    def data_received(self, data: bytes) -> None:
        """Parse a little."""
        if not self.begun:
            self.begun = True
            self.on_message_begin()
        if b"\r\n\r\n" in data:
            self.begun = False
            self.on_headers_complete()

    def on_message_begin(self) -> None:
        """A request begins."""
        self.headers = [(b"host", b"x")]

    def on_headers_complete(self) -> None:
        """A request's head is complete."""


@pytest.fixture
def connection() -> Any:
    made = limited(Protocol, 100, 10.0)()
    made.connection_made(made)
    return made


def test_an_endless_head_is_refused(connection: Any) -> None:
    """Headers over the limit are refused once, whatever pieces they arrive in."""
    for _ in range(50):
        connection.data_received(b"a" * 10)
    (refusal,) = connection.refusals
    assert refusal.startswith(b"HTTP/1.1 431 ")
    assert connection.closed


def test_a_large_body_is_not_counted(connection: Any) -> None:
    """The gate, and not this limit, handles what follows the head."""
    connection.data_received(b"POST\r\n\r\n" + b"b" * 1000)
    assert connection.refusals == []


def test_a_slow_head_is_given_up(connection: Any) -> None:
    """A connection that does not complete a head in time is closed, the first one and any later one."""
    connection.timers[0].action()
    assert connection.closed
    connection.closed = False
    connection.data_received(b"GET\r\n\r\n")
    assert connection.timers[0].action is None
    connection.data_received(b"GET")
    connection.timers[-1].action()
    assert connection.closed


def test_a_head_that_comes_whole_needs_no_clock(connection: Any) -> None:
    """Only the first request of a connection starts a timer."""
    for _ in range(3):
        connection.data_received(b"GET\r\n\r\n")
    assert len(connection.timers) == 1


def test_a_lost_connection_stops_its_clock(connection: Any) -> None:
    """No timer fires for a connection that is closed."""
    connection.connection_lost(None)
    assert connection.lost == 1
    assert connection.timers[-1].action is None


def test_another_parser_is_refused() -> None:
    """A protocol without the callbacks cannot be limited, and the engine does not start."""
    with pytest.raises(TypeError, match="cannot limit headers"):
        limited(object, 1, 1.0)
