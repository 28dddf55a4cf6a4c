"""A `servekit serve` into a fault: a real process, both its probes written down, its log, and whatever it leaves."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import urllib3

from servekit.serve.guard.keys import load_keys
from tests.conftest import ROOT, find_free_port
from tests.engine.conftest import ENGINE, get
from tests.faults.fault import Fault
from tests.faults.probes import Probes
from tests.harness.processes import all_processes, command_line, descendants, is_running

FAKE = ROOT / "tests" / "serve" / "fake_engine.py"
MODEL = "gemma4-demo"


class Launch:
    """One start: `prepare` may change `flags`, `environ` and `argv` until `start` is called."""

    def __init__(self, fault: Fault, folder: Path, cache: Path, things: contextlib.ExitStack) -> None:
        self.folder, self.cache, self.things = folder, cache, things
        self.port, self.observe_port = find_free_port(), find_free_port()
        self.argv = [sys.executable, "-m", "servekit.cli.main", "serve", "--target", "cpu"]
        self.flags = list(fault.flags)
        self.mark = uuid.uuid4().hex
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")},
            "SERVEKIT_ENGINE": str(ENGINE) if fault.engine == "real" else str(self.wrap(FAKE, fault.faults)),
            "SERVEKIT_CACHE_DIR": str(cache),
            "SERVEKIT_STATE_DIR": str(folder / "state"),
            "FAULT_MARK": self.mark,
            **fault.environ,
        }
        self.lines: list[str] = []
        self.lines_wanted: int | None = None
        """Hang up on the log after so many lines."""
        self.process: subprocess.Popen[str]
        self.probes: Probes
        self._reader = threading.Thread(target=self._read, daemon=True)

    def wrap(self, program: Path, arguments: Sequence[str], *, interpreter: str = f"{sys.executable} -I") -> Path:
        """Write a program that calls `program` with what it is given and `arguments`; return its path."""
        path = self.folder / f"engine-{program.stem}"
        path.write_text(f'#!/bin/sh\nexec {interpreter} {program} "$@" {shlex.join(arguments)}\n')
        path.chmod(0o755)
        return path

    def start(self) -> None:
        """Start servekit, and write down what its probes answer from now on."""
        self.process = subprocess.Popen(
            [*self.argv, "--port", str(self.port), "--observe-port", str(self.observe_port), *self.flags],
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.probes = Probes(self.observe_url, self.process.pid)
        self._reader.start()

    @property
    def url(self) -> str:
        """Where the endpoint is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def observe_url(self) -> str:
        """Where the probes are."""
        return f"http://127.0.0.1:{self.observe_port}"

    @property
    def key(self) -> str:
        """The clients' key."""
        return load_keys(self.folder / "state" / "api_keys")[0]

    def until(self, condition: Callable[[], object], what: str, within_s: float = 150) -> None:
        """Wait for a condition while servekit lives; fail with its last lines otherwise."""
        end = time.monotonic() + within_s
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"no {what}, exit code {self.process.poll()}:\n" + "\n".join(self.lines[-30:]))
            time.sleep(0.01)

    def until_says(self, answer: str, within_s: float = 150) -> None:
        """Wait until /readyz begins with this answer: `ready`, `draining`, `starting (weights)`; also in the notes."""
        self.until(lambda: get(f"{self.observe_url}/readyz")[1].startswith(answer), answer, within_s)
        state = answer.split(maxsplit=1)[0]
        for noted in (self.probes.ready, self.probes.live):
            self.until(lambda noted=noted: any(seen == state for seen, _ in noted), f"noted {state}", 10)  # type: ignore[misc]

    def in_flight(self) -> int:
        """Return the requests in the engine, as the metrics page tells them."""
        lines = get(f"{self.observe_url}/metrics")[1].splitlines()
        found = [line for line in lines if line.startswith("servekit_guard_in_flight ")]
        return int(float(found[0].split()[1])) if found else -1

    def ask(self, count: int, **fields: object) -> list[int]:
        """Send requests at once, wait until all run, and return a list that their HTTP statuses will come into."""
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
        """Return the pid of a process of the engine: keeper, server, core or worker."""
        signs = {"keeper": "keeper.py", "server": " serve ", "core": "VLLM::EngineCore", "worker": "VLLM::Worker"}
        below = [pid for pid in descendants(self.process.pid) if signs[role] in command_line(pid)]
        # The keeper's own words hold those of the server, which is its child.
        return below[0] if role != "server" else next(pid for pid in below if "keeper.py" not in command_line(pid))

    def end(self, within_s: float) -> int:
        """Wait for the end and return the exit code."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {within_s} s:\n" + "\n".join(self.lines[-30:]))
        self.probes.stop()
        if self.lines_wanted is None:
            self._reader.join(10)
        return code

    def left(self, within_s: float = 3) -> list[str]:
        """Return the processes that outlive servekit, after a moment for them to go."""
        end = time.monotonic() + within_s
        while (pids := self._living()) and time.monotonic() < end:
            time.sleep(0.05)
        return [f"{pid}: {command_line(pid)}" for pid in pids]

    def finish(self) -> None:
        """End whatever still runs of it."""
        if not hasattr(self, "process"):
            return
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
        # vLLM's processes write their titles over their environment: these are known from having been seen.
        return [pid for pid in {*marked, *self.probes.processes} if is_running(pid)]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))
                if self.lines_wanted is not None and len(self.lines) >= self.lines_wanted:
                    return


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"FAULT_MARK={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
