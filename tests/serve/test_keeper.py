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
from servekit.serve.guard.inside.servekit_guard.usage import meter
from tests.conftest import wait_until
from tests.harness.processes import is_running
from tests.serve.kills import survivors

SLEEP = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
LEADER = """
import os, pathlib, signal, subprocess, sys, time
def book(*_):
    pathlib.Path(sys.argv[1]).with_name("booked").touch()
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGUSR2, {})
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(f"{{os.getpid()}} {{child.pid}}\\n")
{}
time.sleep(600)
"""


@contextmanager
def kept(pid_file: Path, program: str = SLEEP) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A keeper of a program that writes its pid and sleeps: yields servekit's end of the lifeline, and the keeper."""
    ours, theirs = socket.socketpair()
    command = [
        sys.executable,
        "-I",
        keeper.__file__,
        str(theirs.fileno()),
        "--",
        sys.executable,
        "-c",
        program,
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


@pytest.mark.parametrize(
    ("handler", "then", "books"),
    [
        ("book", "", True),
        ("signal.SIG_DFL", "", False),
        ("signal.SIG_IGN", "", False),
        ("book", "os.kill(os.getpid(), signal.SIGSTOP)", False),
    ],
    ids=["books", "has no guard yet", "hangs", "is stopped"],
)
def test_the_leader_may_book(tmp_path: Path, handler: str, then: str, *, books: bool) -> None:
    """When servekit dies, the leader gets the guard's signal; whatever it does then, no process is left."""
    assert keeper.BOOK == meter.BOOK
    pid_file = tmp_path / "pid"
    with kept(pid_file, LEADER.format(handler, then)) as (ours, process):
        wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        pids = [int(pid) for pid in pid_file.read_text().split()]
        if then:
            wait_until(lambda: ") T " in Path(f"/proc/{pids[0]}/stat").read_text())
        ours.close()
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert [pid for pid in pids if is_running(pid)] == []
    assert (tmp_path / "booked").exists() == books


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """No process survives if servekit is killed at any of ten moments of its start, the last when the engine runs."""
    ensure_demo_model(tmp_path / "cache")
    moments = [*(0.15 * number for number in range(1, 10)), None]
    seen = {moment: survivors(moment, tmp_path, tmp_path / "cache") for moment in moments}
    assert {moment: left for moment, (_, left) in seen.items() if left} == {}
    assert seen[None][0]
