"""The engine as a process: started under its keeper, heard line by line, told to stop, killed whole."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from servekit.errors import StartError
from servekit.serve.engine import keeper

_LINE_LIMIT_BYTES = 64 * 1024
"""A longer line is passed on in pieces: a flood without line ends must not fill the memory."""


class Engine:
    """One run of the engine in a session and process group of its own.

    Two threads serve it: one passes on its lines, one waits for its end. Both call back; neither decides anything.
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
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None

    def start(self) -> int:
        """Start the engine and return the pid of its leader; raise StartError where there is no such program."""
        ours, theirs = socket.socketpair()
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
        except OSError as error:
            ours.close()
            raise StartError(f"cannot start the engine: {error}") from error
        finally:
            theirs.close()
        self._lifeline = ours
        stdout = self._process.stdout
        assert stdout is not None
        reader = threading.Thread(target=self._read, args=(stdout,), name="engine-lines", daemon=True)
        reader.start()
        leader = ours.recv(64)
        threading.Thread(target=self._wait, args=(reader,), name="engine-exit", daemon=True).start()
        return int(leader) if leader else 0

    @property
    def group(self) -> int:
        """The process group of the engine and its keeper."""
        assert self._process is not None
        return self._process.pid

    def terminate(self) -> None:
        """Ask the leader, and nobody else, to finish what runs and end. Asking again has no effect."""
        self._signal_keeper(signal.SIGTERM)

    def kill(self) -> None:
        """Kill every process of the engine at once; `on_exit` follows."""
        if self._lifeline is not None:
            with contextlib.suppress(OSError):
                self._lifeline.shutdown(socket.SHUT_RDWR)

    def sweep(self) -> None:
        """Kill the whole process group, keeper included: the last resort where `kill` was not obeyed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)

    def _signal_keeper(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _read(self, stdout: IO[bytes]) -> None:
        with stdout:
            while line := stdout.readline(_LINE_LIMIT_BYTES):
                self._on_line(line.decode(errors="replace").rstrip("\r\n"))

    def _wait(self, reader: threading.Thread) -> None:
        assert self._process is not None
        assert self._lifeline is not None
        code = self._process.wait()
        self.sweep()
        # Everything that could write is dead, so the pipe ends; the last lines come before the news of the end.
        reader.join(timeout=5)
        self._lifeline.close()
        self._on_exit(code)
