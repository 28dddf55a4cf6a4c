"""An endpoint on the real engine, started by servekit or by hand with the same words, and ended whole."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import ROOT, SERVEKIT, clean_environment, engine_program
from tests.harness.processes import descendants

START_S = 300
STOP_S = 60
KEY_FILE = "api_keys"
"""Where servekit leaves the key it makes, in its state folder."""

# What servekit adds to the engine for its guard; an engine started by hand has none.
_GUARD_FLAGS = ("--middleware",)
_GUARD_VARIABLES = ("PYTHONPATH", "SERVEKIT_GUARD_CONFIG", "VLLM_MEDIA_CONNECTOR")


@dataclass(frozen=True)
class Endpoint:
    """One running endpoint: where it is, how to be let in, and its processes."""

    url: str
    model: str
    pid: int
    """servekit itself, or the engine's server where that was started by hand."""
    key: str = ""
    observe_url: str = ""


@contextmanager
def served_by_servekit(folder: Path) -> Iterator[Endpoint]:
    """Give a ready endpoint started by `servekit serve`."""
    port, observe_port = free_port(), free_port()
    observe_url = f"http://127.0.0.1:{observe_port}"
    environment = _settings(folder) | {"SERVEKIT_OBSERVE_PORT": str(observe_port)}
    argv = [str(SERVEKIT), "serve", "--port", str(port)]
    with _running(argv, environment, folder / "servekit.log", f"{observe_url}/readyz") as pid:
        key_file = folder / KEY_FILE
        lines = key_file.read_text().splitlines() if key_file.exists() else []
        key = next((line for line in lines if line and not line.startswith("#")), "")
        yield Endpoint(f"http://127.0.0.1:{port}", "bench", pid, key, observe_url)


@contextmanager
def served_by_hand(folder: Path) -> Iterator[Endpoint]:
    """Give a ready endpoint of `vllm serve`, with the arguments and the environment of `servekit plan`, unguarded."""
    port = free_port()
    argv = [str(SERVEKIT), "plan", "--format", "json", "--port", str(port)]
    said = subprocess.run(argv, cwd=ROOT, env=_settings(folder), stdout=subprocess.PIPE, check=True).stdout
    plan = json.loads(said)
    added = {name: value for name, value in plan["environment"].items() if name not in _GUARD_VARIABLES}
    url = f"http://127.0.0.1:{port}"
    with _running(unguarded(plan["argv"]), clean_environment() | added, folder / "hand.log", f"{url}/health") as pid:
        yield Endpoint(url, "bench", pid)


def unguarded(argv: Sequence[str]) -> list[str]:
    """Return the engine's command line without servekit's guard."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in _GUARD_FLAGS:
            next(words)
        else:
            kept.append(word)
    return kept


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _settings(folder: Path) -> dict[str, str]:
    own = {
        "SERVEKIT_TARGET": "cpu",
        "SERVEKIT_ENGINE": engine_program(),
        "SERVEKIT_MODEL": str(folder / "model"),
        "SERVEKIT_SERVED_NAME": "bench",
        "SERVEKIT_STATE_DIR": str(folder),
        "SERVEKIT_CACHE_DIR": str(folder),
    }
    return clean_environment() | own


@contextmanager
def _running(argv: Sequence[str], environment: Mapping[str, str], log: Path, ready_url: str) -> Iterator[int]:
    """Run a program until the end of the block; its output goes into a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _await_ready(process, ready_url, log)
        yield process.pid
    finally:
        below = descendants(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        # vLLM's EngineCore and worker outlive a server that was killed.
        for pid in (*below, *([process.pid] if process.poll() is None else [])):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.25)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise SystemExit(f"not ready, exit code {process.poll()}:\n{last}")
