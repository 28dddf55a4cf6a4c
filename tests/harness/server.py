"""A server process under test or measurement: its output, the processes below it, and its end."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Self

from tests.harness.http import get
from tests.harness.processes import command_line, descendants, is_running

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / ".venv-engine" / "bin" / "vllm"
PATCHES = ROOT / ".venv-engine-patches"
START_S = 400
_LAST_LINES = 40


class HarnessError(AssertionError):
    """A server did not do in time what a test or a benchmark waited for."""


class Server:
    """A server process once `start` has been called, including all processes below it."""

    process: "subprocess.Popen[str]"
    started_s: float

    def __init__(
        self,
        argv: Sequence[str | Path],
        environ: Mapping[str, str],
        port: int,
        *,
        model: str = "",
        log: Path | None = None,
    ) -> None:
        self.argv, self.environ = [str(word) for word in argv], dict(environ)
        self.port, self.url, self.model, self.log = port, f"http://127.0.0.1:{port}", model, log
        self.lines: list[str] = []
        self.lines_wanted: int | None = None
        """Close the output pipe after this many lines."""
        self.seen: set[int] = set()
        """Every process below this one that `processes` has found so far."""
        self._reader = threading.Thread(target=self._read, daemon=True)

    def start(self) -> Self:
        """Start the process in the root folder of the repository."""
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            self.argv,
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader.start()
        return self

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self.process.pid

    @property
    def key(self) -> str:
        """The clients' key; empty if the server needs none."""
        return ""

    @property
    def age_s(self) -> float:
        """Seconds since the start of the process."""
        return time.monotonic() - self.started_s

    @property
    def output(self) -> str:
        """All output of the server so far."""
        return "\n".join(list(self.lines))

    def until(self, condition: Callable[[], object], what: str, within_s: float = START_S) -> float:
        """Wait for a condition while the process runs; return the server's age. Raises HarnessError."""
        end = time.monotonic() + within_s
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                last = "\n".join(list(self.lines)[-_LAST_LINES:])
                raise HarnessError(f"no {what}, exit code {self.process.poll()}:\n{last}")
            time.sleep(0.02)
        return self.age_s

    def until_line(self, part: str, within_s: float = START_S) -> None:
        """Wait for a line that contains `part`."""
        self.until(lambda: any(part in line for line in list(self.lines)), f"line with {part!r}", within_s)

    def until_ready(self, within_s: float = START_S) -> None:
        """Wait until the server reports that it is healthy."""
        self.until(self.is_ready, "readiness", within_s)

    def is_ready(self) -> bool:
        """Return whether clients may send requests."""
        return self.is_alive()

    def is_alive(self) -> bool:
        """Return whether the engine's health route reports that it is healthy."""
        return get(f"{self.url}/health")[0] == 200

    def processes(self) -> dict[int, str]:
        """Return the processes below this one now: process id to command line."""
        found = {pid: command_line(pid) for pid in descendants(self.pid)}
        self.seen |= set(found)
        return found

    def end(self, within_s: float = 60) -> int:
        """Wait for the end and return the exit code. Raises HarnessError."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            last = "\n".join(self.lines[-_LAST_LINES:])
            raise HarnessError(f"still running after {within_s} s:\n{last}") from None
        if self.lines_wanted is None:
            self._reader.join(10)
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = 60) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.end(within_s)

    def close(self) -> None:
        """Stop the server gracefully, then kill what is left: a killed vLLM server leaves its EngineCore behind."""
        self.processes()
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.sweep()
        self._reader.join(10)

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def sweep(self) -> None:
        """Kill this process and every process ever found below it."""
        for pid in (*self.seen, self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def finish(self) -> None:
        """Kill the server if it still runs. Raises HarnessError if a process below it survives."""
        self.processes()
        if self.process.poll() is None:
            self.process.kill()
            self.end()
        end = time.monotonic() + 40
        while left := [pid for pid in self.seen if is_running(pid)]:
            if time.monotonic() > end:
                raise HarnessError(f"left behind: {[command_line(pid) for pid in left]}")
            time.sleep(0.05)

    def written(self, line: str) -> str:
        """Return a line in the log's format."""
        return line

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output, self.log.open("w") if self.log else nullcontext() as log:
            for line in output:
                self.lines.append(line.rstrip("\n"))
                if log is not None:
                    log.write(self.written(line))
                    log.flush()
                if len(self.lines) == self.lines_wanted:
                    return
