"""When a server counts as silent: a late answer is still an answer."""

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from servekit.serve.watch.probe import EngineClient
from servekit.serve.watch.silence import Recovered, Silence, Silent

SILENT_S = 0.4


class Server(EngineClient):
    """A server that answers each request once the test lets it."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.let = threading.Event()
        self.asked = 0

    def health(self, *, timeout_s: float = 5) -> int | None:
        """Answer once the test allows it, however late."""
        self.asked += 1
        return 200 if self.let.wait(timeout_s) else None


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def posted(server: Server) -> Iterator["queue.SimpleQueue[Silent | Recovered]"]:
    """The events posted about the server until the end of the test."""
    over, events = threading.Event(), queue.SimpleQueue[Silent | Recovered]()
    Silence(server, SILENT_S, 60, events.put, over).start()
    yield events
    over.set()
    server.let.set()


def test_silence_is_posted_once_and_its_end_too(
    server: Server, posted: "queue.SimpleQueue[Silent | Recovered]", eventually: Callable[..., None]
) -> None:
    """Without an answer for that long the server is silent, until it answers the pending request."""
    assert posted.get(timeout=5) == Silent(SILENT_S)
    asked = server.asked
    with pytest.raises(queue.Empty):
        posted.get(timeout=3 * SILENT_S)
    server.let.set()
    end = posted.get(timeout=5)
    assert isinstance(end, Recovered)
    assert end.seconds >= 4 * SILENT_S
    eventually(lambda: server.asked > asked, what="the next question")
    assert posted.empty()


def test_late_answers_are_answers(server: Server, posted: "queue.SimpleQueue[Silent | Recovered]") -> None:
    """A server that uses three quarters of the time for every answer is slow, not silent."""
    original = server.let.wait

    server.let.wait = lambda timeout=None: original(SILENT_S / 2 if timeout else 0) or True  # type: ignore[method-assign]
    with pytest.raises(queue.Empty):
        posted.get(timeout=6 * SILENT_S)
    assert server.asked >= 3
