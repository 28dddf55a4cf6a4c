"""Ends answers that a client does not read: uvicorn waits for such a client as long as its connection lasts.

A stream that waits keeps its slot in the guard, and enough of them block the endpoint. So a connection with bytes left
to send is reset when the client's host has accepted none of them for `max_write_s`. nginx's `send_timeout` does the
same, with the same 60 s. A client that reads slowly is left alone.
"""

import array
import fcntl
import importlib
import socket
import struct
import termios
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SWEEPS = 12
"""How often the connections are checked within `max_write_s`: no write needs its own timer."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: the kernel frees what it still buffers, some MiB for each connection."""


def watch(max_write_s: float) -> "Unread":
    """Watch every connection of the uvicorn server that this process is about to start."""
    auto: Any = importlib.import_module("uvicorn.protocols.http.auto")
    unread = Unread(max_write_s)

    class Watched(auto.AutoHTTPProtocol):  # type: ignore[misc] # uvicorn is not installed where this is checked
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            unread.attend(self.loop, self.connections)

    auto.AutoHTTPProtocol = Watched
    return unread


class Unread:
    """The connections whose unsent bytes do not decrease, with their number and since when."""

    def __init__(self, max_write_s: float) -> None:
        self.report: Callable[[Any], None] = lambda _scope: None
        """Called with the scope of a request whose answer was ended."""
        self._max_write_s = max_write_s
        self._waiting: dict[tuple[Any, int], float] = {}
        """By connection with bytes to send, and how many are not acknowledged: since when it is that number."""
        self._sweeping = False

    def attend(self, loop: Any, connections: set[Any]) -> None:
        """Check the server's connections, repeatedly while there are any."""
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(self._max_write_s / SWEEPS, self._sweep, loop, connections)

    def _sweep(self, loop: Any, connections: set[Any]) -> None:
        now_s = loop.time()
        backlogs = [
            (each, _backlog_bytes(each.transport)) for each in connections if each.transport.get_write_buffer_size()
        ]
        self._waiting = {backlog: self._waiting.get(backlog, now_s) for backlog in backlogs}
        for (connection, _), since_s in self._waiting.items():
            if now_s - since_s >= self._max_write_s:
                self._end(connection)
        self._sweeping = False
        if connections:
            self.attend(loop, connections)

    def _end(self, connection: Any) -> None:
        """Reset the connection; uvicorn then tells vLLM that its client is gone, and vLLM aborts the request."""
        if connection.cycle is not None:
            self.report(connection.cycle.scope)
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.transport.abort()


def _backlog_bytes(transport: Any) -> int:
    """Return how many bytes wait in this process and in the kernel until the client's host has them.

    The kernel takes more from here only when a third of its buffer, a MiB, is free: without its part, a client that
    reads 10 kB/s would look like one that does not read.
    """
    unsent = array.array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, unsent)
    return int(transport.get_write_buffer_size()) + unsent[0]
