"""How many requests a drain waits for, and cuts."""

import socket
from pathlib import Path

import pytest

from servekit.serve.connections import count_connections
from servekit.serve.drain import Remaining


def test_connections_of_a_port(free_port: int) -> None:
    """Clients are counted while they hold on, and no longer."""
    with socket.create_server(("127.0.0.1", free_port)) as server:
        assert count_connections(free_port) == 0
        with socket.create_connection(("127.0.0.1", free_port)):
            accepted, _ = server.accept()
            assert count_connections(free_port) == 1
        with accepted:
            assert count_connections(free_port) == 0


def test_connections_that_nobody_tells(tmp_path: Path) -> None:
    """Without the kernel's tables there is no count, rather than a zero."""
    assert count_connections(80, proc=tmp_path) is None


@pytest.mark.parametrize(
    ("began_with", "connections", "count", "text"),
    [
        (8, 3, 3, "3 running requests"),
        (1, 5, 1, "1 running request"),
        (2, 0, 0, "no running requests"),
        (None, 4, 4, "4 running requests"),
        (8, None, 8, "8 running requests"),
        (None, None, None, "running requests"),
    ],
)
def test_remaining(began_with: int | None, connections: int | None, count: int | None, text: str) -> None:
    """The smaller count is told, the one that is known where the other is not, and no number where neither is."""
    remaining = Remaining(began_with, 1, connections=lambda _: connections)
    assert remaining.count == began_with
    assert remaining.look() == count
    assert str(remaining) == text
