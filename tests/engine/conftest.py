"""The real vLLM 0.20.2 on the CPU, started as a user starts it: by the `servekit` command."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from servekit.serve.guard.keys import load_keys, own_key_file
from tests.conftest import ROOT, find_free_port
from tests.harness.processes import command_line, descendants, is_running

ENGINE = ROOT / ".venv-engine" / "bin" / "vllm"
SERVEKIT = ("-m", "servekit.cli.main")
PATCHES = ROOT / ".venv-engine-patches"


class Endpoint:
    """A `servekit serve` of this test's own, with the lines it has printed so far."""

    def __init__(
        self,
        cache: Path,
        *flags: str,
        environ: dict[str, str] | None = None,
        program: Sequence[str] = SERVEKIT,
    ) -> None:
        self.port, self.observe_port = find_free_port(), find_free_port()
        self.url, self.observe_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.observe_port}"
        self.lines: list[str] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")}
        own = {"SERVEKIT_ENGINE": str(ENGINE), "SERVEKIT_CACHE_DIR": str(cache), "SERVEKIT_STATE_DIR": str(cache)}
        command = [sys.executable, *program, "serve", "--target", "cpu", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--observe-port", str(self.observe_port), *flags],
            cwd=ROOT,
            env=clean | own | (environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.state_dir = cache
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, what: Callable[[], object], name: str, within_s: float = 150) -> None:
        """Wait for a condition while the process lives; fail with its last lines otherwise."""
        end = time.monotonic() + within_s
        while not what():
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"no {name}, exit code {self.process.poll()}:\n" + "\n".join(self.lines[-40:]))
            time.sleep(0.05)

    def until_line(self, part: str, within_s: float = 150) -> None:
        """Wait for a line that contains `part`."""
        self.until(lambda: any(part in line for line in list(self.lines)), f"line with {part!r}", within_s)

    def until_ready(self, within_s: float = 150) -> None:
        """Wait until the readiness probe is green."""
        self.until(lambda: get(f"{self.observe_url}/readyz")[0] == 200, "readiness", within_s)

    def end(self, within_s: float = 60) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(within_s)
        self._reader.join(10)
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = 60) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.end(within_s)

    @property
    def key(self) -> str:
        """The key that servekit has made for the clients."""
        return load_keys(own_key_file(self.state_dir))[0]

    def status(self) -> dict[str, Any]:
        """Return what /status says."""
        body = json.loads(get(f"{self.observe_url}/status")[1])
        assert isinstance(body, dict)
        return body

    def processes(self) -> dict[str, int]:
        """Return the pids of the engine by their role: keeper, server, core, worker and whatever else there is."""
        roles = {"VLLM::EngineCore": "core", "VLLM::Worker": "worker", "keeper.py": "keeper", " serve ": "server"}
        found: dict[str, int] = {}
        for pid in descendants(self.process.pid):
            words = command_line(pid)
            role = next((role for sign, role in roles.items() if sign in words), f"other {pid}: {words}")
            found.setdefault(role, pid)
        return found

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))


def get(url: str, timeout_s: float = 10) -> tuple[int, str]:
    """Return status and body; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests, so that the demo checkpoint is built once."""
    assert ENGINE.exists(), f"{ENGINE} is missing: `make install` puts the CPU engine there"
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def serve(engine_cache: Path) -> Iterator[Callable[..., Endpoint]]:
    """Start endpoints of this test's own; all are ended, and nothing of them may be left."""
    started: list[Endpoint] = []

    def start(*flags: str, environ: dict[str, str] | None = None) -> Endpoint:
        started.append(Endpoint(engine_cache, *flags, environ=environ))
        return started[-1]

    yield start
    for endpoint in started:
        finish(endpoint)


def finish(endpoint: Endpoint) -> None:
    """End an endpoint whatever state it is in, and see that no process of it is left."""
    below = descendants(endpoint.process.pid)
    if endpoint.process.poll() is None:
        endpoint.process.kill()
        endpoint.end()
    end = time.monotonic() + 10
    while left := [pid for pid in below if is_running(pid)]:
        assert time.monotonic() < end, f"left behind: {[command_line(pid) for pid in left]}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def endpoint(engine_cache: Path) -> Iterator[Endpoint]:
    """One ready endpoint that all tests of serving share."""
    endpoint = Endpoint(engine_cache)
    endpoint.until_ready()
    yield endpoint
    finish(endpoint)


@pytest.fixture(scope="session")
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    """The official client on the shared endpoint; without its retries, so that no connection may be lost."""
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=60) as client:
        yield client
