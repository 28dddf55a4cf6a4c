"""A server under measurement: `servekit serve`, or vLLM alone with the same arguments."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import read_card, used_bytes
from tests.harness.processes import command_line, descendants

PHASES = ("preflight", "imports", "engine", "weights", "compile", "warm-up", "verify")
"""Of a start, as /status names them."""
Line = tuple[float, str]
"""Seconds since the start of the process, and what it printed."""


class Endpoint:
    """One server process with its output; everything below it counts as its own."""

    def __init__(self, name: str, argv: Sequence[str], environ: Mapping[str, str], log: Path, url: str) -> None:
        self.name, self.url, self.log = name, url, log
        self.lines: list[Line] = []
        self.seen: set[int] = set()
        """Every process seen below this one so far."""
        self.gpu_before_bytes = used_bytes()
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            list(argv),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def age_s(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self.started_s

    def until(self, what: Callable[[], object], within_s: float) -> float:
        """Wait for a condition; return its second, or raise RuntimeError with the last lines."""
        end = time.monotonic() + within_s
        while not what():
            self.processes()
            if self.process.poll() is not None or time.monotonic() > end:
                last = "\n".join(text for _, text in self.lines[-30:])
                raise RuntimeError(f"{self.name}: waited in vain, exit code {self.process.poll()}:\n{last}")
            time.sleep(0.05)
        return self.age_s

    def processes(self) -> dict[int, str]:
        """Return what lives below this process now: pid to command line."""
        found = {pid: command_line(pid) for pid in descendants(self.process.pid)}
        self.seen |= set(found)
        return found

    def core(self) -> int:
        """Return the pid of vLLM's EngineCore."""
        return next(pid for pid, words in self.processes().items() if "EngineCore" in words)

    def signal(self, number: signal.Signals) -> float:
        """Send a signal to the server; return the monotonic second."""
        self.processes()
        self.process.send_signal(number)
        return time.monotonic()

    def ending(self, since_s: float, within_s: float) -> dict[str, Any]:
        """Wait for the end; say how long it took since the monotonic second `since_s`, and what it left behind."""
        while self.process.poll() is None and time.monotonic() - since_s < within_s:
            self.processes()
            time.sleep(0.02)
        took_s = time.monotonic() - since_s
        code = self.process.poll()
        left = {pid: command_line(pid) for pid in self.seen if command_line(pid)}
        free_s, on_gpu = self._await_gpu()
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
            "last_line": self.lines[-1][1] if self.lines else "",
        }

    def sweep(self) -> None:
        """Kill every process that was ever seen below this one, and this one."""
        for pid in (*self.seen, self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def find(self, *parts: str) -> list[str]:
        """Return the lines with one of the parts in them, each with its second."""
        return [f"{age_s:7.2f} {text}" for age_s, text in list(self.lines) if any(part in text for part in parts)]

    def _await_gpu(self, within_s: float = 10) -> tuple[float, list[int]]:
        """Wait until the driver lists no process of this server; return the seconds, and those still listed."""
        began_s = time.monotonic()
        while True:
            reading = read_card()
            left = sorted(self.seen & set(reading.process_bytes)) if reading else []
            took_s = time.monotonic() - began_s
            if not left or took_s > within_s:
                return took_s, left
            time.sleep(0.05)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout, self.log.open("w") as log:
            for line in self.process.stdout:
                self.lines.append((self.age_s, line.rstrip("\n")))
                log.write(f"{self.age_s:8.2f} {line}")
                log.flush()


class Served(Endpoint):
    """A `servekit serve`, with what its own server says."""

    def __init__(self, name: str, flags: Sequence[str], environ: Mapping[str, str], log: Path, port: int) -> None:
        self.observe_url = f"http://127.0.0.1:{port + 1}"
        argv = [
            sys.executable,
            "-m",
            "servekit.cli.main",
            "serve",
            "--port",
            str(port),
            "--observe-port",
            str(port + 1),
        ]
        super().__init__(name, [*argv, *flags], environ, log, f"http://127.0.0.1:{port}")

    def ready(self) -> bool:
        """Whether the readiness probe is green."""
        return get(f"{self.observe_url}/readyz")[0] == 200  # noqa: PLR2004

    def status(self) -> dict[str, Any]:
        """Return what /status says; empty where it does not answer."""
        code, body = get(f"{self.observe_url}/status")
        return dict(json.loads(body)) if code else {}

    def phase(self) -> str:
        """Return the phase of the start; empty before it and after it."""
        return str(self.status().get("phase") or "")

    def is_past(self, phase: str) -> bool:
        """Whether the start has left this phase behind."""
        now = self.phase()
        return PHASES.index(now) > PHASES.index(phase) if now else self.ready()


def get(url: str, timeout_s: float = 10) -> tuple[int, str]:
    """Return status and body; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""
