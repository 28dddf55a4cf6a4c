"""A server under measurement on a GPU: `servekit serve` or vLLM alone, and what it leaves on the GPU afterwards."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.reading import read_gpu, used_bytes
from tests.harness.endpoint import PHASES, Endpoint
from tests.harness.ports import free_port
from tests.harness.processes import command_line
from tests.harness.server import START_S, Server


class Measured(Server):
    """A server with a timestamp on each output line and with its shutdown measured."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.ages_s: list[float] = []
        """When each line came, in seconds since the start of the process."""
        self.gpu_before_bytes = used_bytes()

    def until(self, condition: Callable[[], object], what: str, within_s: float = START_S) -> float:
        """Wait for a condition, recording every process meanwhile; return the server's age. Raises HarnessError."""
        return super().until(lambda: (self.processes(), condition())[1], what, within_s)

    def core(self) -> int:
        """Return the process id of vLLM's EngineCore."""
        return next(pid for pid, words in self.processes().items() if "EngineCore" in words)

    def signal(self, number: signal.Signals) -> float:
        """Send a signal to the server; return the monotonic second."""
        self.processes()
        self.process.send_signal(number)
        return time.monotonic()

    def ending(self, since_s: float, within_s: float) -> dict[str, Any]:
        """Wait for the end; return how long it took since `since_s` (monotonic), and what is left."""
        while self.process.poll() is None and time.monotonic() - since_s < within_s:
            self.processes()
            time.sleep(0.02)
        took_s = time.monotonic() - since_s
        code = self.process.poll()
        left = {pid: command_line(pid) for pid in self.seen if command_line(pid)}
        free_s, on_gpu = self.await_gpu()
        if code is None or left:
            self.sweep()
        self._reader.join(5)
        return {
            "exit_code": code,
            "seconds": round(took_s, 2),
            "processes_left": list(left.values()),
            "gpu_processes_left": on_gpu,
            "gpu_released_after_s": round(free_s, 2),
            "gpu_bytes_over_start": used_bytes() - self.gpu_before_bytes,
            "last_line": self.lines[-1] if self.lines else "",
        }

    def find(self, *parts: str) -> list[str]:
        """Return the lines that contain one of the parts, each with its timestamp."""
        stamped = zip(list(self.ages_s), list(self.lines), strict=False)
        return [f"{age_s:7.2f} {text}" for age_s, text in stamped if any(part in text for part in parts)]

    def written(self, line: str) -> str:
        """Return a line with its timestamp."""
        self.ages_s.append(self.age_s)
        return f"{self.age_s:8.2f} {line}"

    def await_gpu(self, within_s: float = 10) -> tuple[float, list[int]]:
        """Wait until the driver lists no process of this server; return the seconds, and the processes still listed."""
        began_s = time.monotonic()
        while True:
            gpu = read_gpu()
            left = sorted(self.seen & gpu.processes.keys()) if gpu else []
            took_s = time.monotonic() - began_s
            if not left or took_s > within_s:
                return took_s, left
            time.sleep(0.05)


class Served(Measured, Endpoint):
    """A `servekit serve` under measurement."""

    def phase(self) -> str:
        """Return the phase of the start; empty before it and after it."""
        return str(self.status().get("phase") or "")

    def is_past(self, phase: str) -> bool:
        """Return whether the start is past this phase."""
        now = self.phase()
        return PHASES.index(now) > PHASES.index(phase) if now else self.is_ready()


def serve(flags: Sequence[str], environ: Mapping[str, str], log: Path) -> Served:
    """Start servekit."""
    server = Served(flags, environ, log=log)
    server.wanted_observe_port = free_port()  # set early: the first phases last tenths of a second
    return server.start()
