"""Readiness for a service manager."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from servekit.serve.download import Download
from servekit.serve.notify import notify
from servekit.serve.status import Phase, State, Status, StatusStore


@pytest.fixture(params=["file", "abstract", "at"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A service manager's socket, and the environment that names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        path = str(tmp_path / ("no@tify" if request.param == "at" else "notify"))
        name = f"@{path}" if request.param == "abstract" else path
        listening.bind(f"\0{path}" if request.param == "abstract" else path)
        listening.settimeout(0)
        yield listening, {"NOTIFY_SOCKET": name}


def test_the_manager_follows_the_state(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """Each phase is a status line; the state ready sends READY=1, a drain STOPPING=1."""
    listening, environ = manager
    store = StatusStore(on_change=lambda status: notify(status, environ=environ))
    store.enter(State.STARTING, "checking and preparing")
    store.enter_phase(Phase.WEIGHTS)
    store.enter(State.READY, "serving")
    store.enter(State.DRAINING, "two\nlines, and half a sign: \udc80")
    assert [listening.recv(200).decode() for _ in range(4)] == [
        "STATUS=starting: checking and preparing",
        "STATUS=starting: weights",
        "READY=1\nSTATUS=ready: serving",
        "STOPPING=1\nSTATUS=draining: two lines, and half a sign: ?",
    ]


def test_a_download_extends_the_start(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """Each moment of a download is a status line and extends the time that the manager gives the start."""
    listening, environ = manager
    store = StatusStore(on_change=lambda status: notify(status, environ=environ))
    store.enter_phase(Phase.DOWNLOAD)
    store.record_download(Download(bytes=5_000, total=10_000))
    sent = [listening.recv(200).decode() for _ in range(2)]
    assert sent[1] == "EXTEND_TIMEOUT_USEC=7200000000\nSTATUS=starting: not started yet: 5.0 kB of 10.0 kB"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere"}], ids=["none", "gone"])
def test_no_manager_is_no_trouble(environ: dict[str, str]) -> None:
    """Without a service manager, or after it has gone, nothing happens."""
    notify(Status(), environ=environ)
