"""The keeper when servekit dies in the first moments of a start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from servekit.demo.build import ensure_demo_model
from servekit.serve.engine import keeper
from tests.harness.processes import is_running
from tests.serve.kills import survivors

SLEEP = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"


@contextmanager
def kept(pid_file: Path) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A keeper of a process that writes its pid and sleeps: yields servekit's end of the lifeline, and the keeper."""
    ours, theirs = socket.socketpair()
    command = [
        sys.executable,
        "-I",
        keeper.__file__,
        str(theirs.fileno()),
        "--",
        sys.executable,
        "-c",
        SLEEP,
        str(pid_file),
    ]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(),), start_new_session=True) as process:
        theirs.close()
        try:
            yield ours, process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def pid_of(pid_file: Path) -> int | None:
    """The pid of the keeper's process, or None if it was never started."""
    text = pid_file.read_text() if pid_file.exists() else ""
    return int(text) if text else None


@pytest.mark.parametrize("unread", [False, True], ids=["before the engine is started", "before its pid is read"])
def test_servekit_dies_while_the_keeper_starts(tmp_path: Path, *, unread: bool) -> None:
    """No process survives if servekit dies before the keeper starts the engine, or before it reads the pid."""
    pid_file = tmp_path / "pid"
    with kept(pid_file) as (ours, process):
        if unread:
            ours.recv(1, socket.MSG_PEEK)
        ours.close()
        process.wait(timeout=60)
        pid = pid_of(pid_file)
        deadline = time.monotonic() + 5
        while pid is not None and is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pid is None or not is_running(pid)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """No process survives if servekit is killed at any of ten moments of its start, the last when the engine runs."""
    ensure_demo_model(tmp_path / "cache")
    moments = [*(0.15 * number for number in range(1, 10)), None]
    seen = {moment: survivors(moment, tmp_path, tmp_path / "cache") for moment in moments}
    assert {moment: left for moment, (_, left) in seen.items() if left} == {}
    assert seen[None][0]
