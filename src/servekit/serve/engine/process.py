"""The engine as a process: started under its keeper, read line by line, stopped, or killed with all its children."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from servekit.serve.engine import keeper

_LINE_LIMIT_BYTES = 64 * 1024
"""A longer line is passed on in pieces: a flood without line ends must not fill the memory."""


class Engine:
    """One run of the engine in its own session and process group.

    One thread passes on its lines, one waits for its end. Both call back; neither decides anything.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        on_line: Callable[[str], None],
        on_exit: Callable[[int], None],
    ) -> None:
        self._argv = tuple(argv)
        self._environment = dict(environment)
        self._on_line = on_line
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes]
        self._lifeline: socket.socket

    def start(self) -> int:
        """Start the engine and return the pid of its leader; raise OSError where the keeper cannot start."""
        self._lifeline, theirs = socket.socketpair()
        command = [sys.executable, "-I", str(Path(keeper.__file__)), str(theirs.fileno()), "--", *self._argv]
        try:
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError:
            self._lifeline.close()
            raise
        finally:
            theirs.close()
        reader = threading.Thread(target=self._read, name="engine-lines", daemon=True)
        reader.start()
        leader = self._lifeline.recv(64)
        threading.Thread(target=self._wait, args=(reader,), name="engine-exit", daemon=True).start()
        return int(leader or 0)

    def terminate(self) -> None:
        """Send SIGTERM to the leader alone: it finishes what runs and exits. A second call has no effect."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill every process of the engine immediately; `on_exit` follows."""
        with contextlib.suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_RDWR)

    def sweep(self) -> None:
        """Kill the whole process group, keeper included: the last resort if `kill` had no effect."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            while line := stdout.readline(_LINE_LIMIT_BYTES):
                self._on_line(line.decode(errors="replace").rstrip("\r\n"))

    def _wait(self, reader: threading.Thread) -> None:
        code = self._process.wait()
        self.sweep()
        # All writers are dead, so the pipe ends: the last lines come before the exit is reported.
        reader.join(timeout=5)
        self._lifeline.close()
        self._on_exit(code)
