"""How many requests a drain still waits for: told by the engine before it stops to listen, by the kernel afterwards."""

from collections.abc import Callable

from servekit.serve.connections import count_connections


class Remaining:
    """The requests that ran when the drain began, and how many of them may still run.

    vLLM 0.20.2 closes its port and every idle connection at SIGTERM, so each connection that is left carries a
    request. The smaller of the two counts is told: a connection a client holds open without a request is no request.
    """

    def __init__(
        self, began_with: int | None, port: int, *, connections: Callable[[int], int | None] = count_connections
    ) -> None:
        self.began_with = began_with
        self._port = port
        self._connections = connections
        self.count = began_with
        """As seen last; None where nobody tells."""

    def look(self) -> int | None:
        """Count again, and return the count."""
        known = [count for count in (self.began_with, self._connections(self._port)) if count is not None]
        self.count = min(known) if known else None
        return self.count

    def __str__(self) -> str:
        """`8 running requests`, as seen last."""
        if self.count is None:
            return "running requests"
        return f"{self.count or 'no'} running request{'' if self.count == 1 else 's'}"
