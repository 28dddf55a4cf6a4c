"""A real `servekit serve` with a fault: its log, the recorded answers of both probes, and the processes it leaves."""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import urllib3

from tests.faults.fault import Check, Fault
from tests.faults.probes import Probes
from tests.harness.endpoint import Endpoint, clean_environment
from tests.harness.ports import free_port
from tests.harness.processes import all_processes, command_line, is_running
from tests.harness.server import ENGINE, ROOT

FAKE = ROOT / "tests" / "serve" / "fake_engine.py"
MODEL = "gemma4-demo"


class Launch(Endpoint):
    """One start; `prepare` may change `flags` and `environ` until `start` is called."""

    def __init__(self, fault: Fault, folder: Path, cache: Path, things: contextlib.ExitStack) -> None:
        self.folder, self.cache, self.things = folder, cache, things
        self.mark = uuid.uuid4().hex
        self.check: Check | None = None
        """A check that `prepare` wants to run after the end."""
        self.release: Callable[[], object] = lambda: None
        """Lets go of what `prepare` holds back, for `provoke` to call."""
        engine = ENGINE if fault.engine == "real" else self.wrap(FAKE, fault.faults)
        own = {
            "SERVEKIT_ENGINE": str(engine),
            "SERVEKIT_CACHE_DIR": str(cache),
            "SERVEKIT_STATE_DIR": str(folder / "state"),
            "FAULT_MARK": self.mark,
        }
        super().__init__(
            ["--target", "cpu", *fault.flags], clean_environment() | own | dict(fault.environ), model=MODEL
        )
        self.wanted_observe_port = free_port()  # chosen in advance: the probes are polled before servekit answers
        self.probes = Probes()

    def wrap(self, program: Path, arguments: Sequence[str], *, interpreter: str = f"{sys.executable} -I") -> Path:
        """Write a program that calls `program` with its own arguments and `arguments`; return its path."""
        path = self.folder / f"engine-{program.stem}"
        path.write_text(f'#!/bin/sh\nexec {interpreter} {program} "$@" {shlex.join(arguments)}\n')
        path.chmod(0o755)
        return path

    def start(self) -> Self:
        """Start servekit, and record the answers of its probes from now on."""
        super().start()
        self.probes.begin(self.observe_url, self.pid)
        return self

    def until_says(self, answer: str, within_s: float = 150) -> None:
        """Wait until /readyz begins with `answer`, such as `starting (weights)`, and both probes have recorded it."""
        self.until(lambda: self.observe("/readyz")[1].startswith(answer), answer, within_s)
        state = answer.split(maxsplit=1)[0]
        for noted in (self.probes.ready, self.probes.live):
            self.until(lambda noted=noted: any(seen == state for seen, _ in noted), f"noted {state}", 10)  # type: ignore[misc]

    def in_flight(self) -> int:
        """Return the number of requests in the engine, as the metrics report it."""
        lines = self.observe("/metrics")[1].splitlines()
        found = [line for line in lines if line.startswith("servekit_guard_in_flight ")]
        return int(float(found[0].split()[1])) if found else -1

    def ask(self, count: int, **fields: object) -> list[int]:
        """Send requests in parallel, wait until all run, and return a list that collects their HTTP statuses."""
        answers: list[int] = []
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 5} | fields

        def send() -> None:
            headers = {"Authorization": f"Bearer {self.key}"}
            with urllib3.PoolManager(headers=headers, retries=False, timeout=120) as pool:
                try:
                    answers.append(pool.request("POST", f"{self.url}/v1/completions", json=body).status)
                except urllib3.exceptions.HTTPError:
                    answers.append(0)

        threads = [threading.Thread(target=send, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
            self.things.callback(thread.join, 10)
        self.until(lambda: self.in_flight() == count, f"{count} running requests", 20)
        return answers

    def pid_of(self, role: str) -> int:
        """Return the process id of one of the engine's processes: keeper, server, core or worker."""
        return self.roles()[role]

    def end(self, within_s: float = 60) -> int:
        """Wait for the end and return the exit code."""
        code = super().end(within_s)
        self.probes.stop()
        return code

    def left(self, within_s: float = 15) -> list[str]:
        """Return the processes that still run `within_s` after servekit's end."""
        end = time.monotonic() + within_s
        while (pids := self._living()) and time.monotonic() < end:
            time.sleep(0.05)
        return [f"{pid}: {command_line(pid)}" for pid in pids]

    def close(self) -> None:
        """Kill every process of this start that still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.probes.stop()
        for pid in self._living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(10)

    def _living(self) -> list[int]:
        marked = [pid for pid in all_processes() if pid != os.getpid() and _has_mark(pid, self.mark)]
        # vLLM's processes overwrite their environment with their titles, so these are known only from earlier scans.
        return [pid for pid in {*marked, *self.probes.processes} if is_running(pid)]


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"FAULT_MARK={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
