"""`servekit serve` as a process, from its start to its exit code, with an engine that misbehaves on demand."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servekit import run
from servekit.demo.build import build_demo_model
from servekit.serve.guard import GuardSettings, prepare_guard
from tests.conftest import ROOT, wait_until
from tests.harness.endpoint import Endpoint, clean_environment
from tests.harness.processes import is_running

PROGRAM = Path(sys.executable).with_name("servekit")
FAKE = ROOT / "tests" / "serve" / "fake_engine.py"

PROFILE = """\
kv-cache-dtype: fp8_e4m3
quantization: compressed-tensors
max-num-seqs: 1024
limit-mm-per-prompt: {image: 3, audio: 0, video: 0}
"""
"""Only the contract: every value that the fake engine can report."""


class Serving(Endpoint):
    """One `servekit serve` for one test, with a fake engine with faults."""

    def __init__(self, folder: Path, model: Path, *flags: str, faults: str = "", engine: str | None = None) -> None:
        self.folder = folder
        profile, wrapper = folder / "profile.yaml", folder / "engine"
        profile.write_text(PROFILE)
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@" {faults}\n')
        wrapper.chmod(0o755)
        own = {
            "SERVEKIT_CONFIG": str(profile),
            "SERVEKIT_ENGINE": engine or str(wrapper),
            "SERVEKIT_MODEL": str(model),
            "SERVEKIT_SERVED_NAME": "m",
            "SERVEKIT_TARGET": "cpu",
            "SERVEKIT_STATE_DIR": str(folder / "state"),
            "SERVEKIT_CACHE_DIR": str(folder / "cache"),
        }
        super().__init__(flags, clean_environment() | own)

    def generate(self) -> None:
        """Send one request that may take long, and do not wait for its answer."""
        body = json.dumps({"model": "m", "prompt": "1", "max_tokens": 5}).encode()

        def send() -> None:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{self.url}/v1/completions", body), timeout=60).close()
            except OSError:
                return

        threading.Thread(target=send, daemon=True).start()


Serve = Callable[..., Serving]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the demo checkpoint once for all tests here."""
    directory = tmp_path_factory.mktemp("model") / "demo"
    build_demo_model(directory)
    return directory


@pytest.fixture
def serve(tmp_path: Path, model: Path) -> Iterator[Serve]:
    """Start `servekit serve` with the fake engine and the given faults; no process of it outlives the test."""
    started: list[Serving] = []

    def start(*flags: str, **others: Any) -> Serving:
        started.append(Serving(tmp_path, model, *flags, **others))
        return started[-1].start()

    yield start
    for serving in started:
        serving.finish()


def test_start_serve_stop(serve: Serve) -> None:
    """It becomes ready, reports its state on every path, drains on SIGTERM, exits with 0 and leaves no process."""
    serving = serve()
    serving.until_ready()
    assert serving.observe("/livez")[0] == 200
    status = json.loads(serving.observe("/status")[1])
    assert (status["state"], status["served_name"]) == ("ready", "m")
    metrics = serving.observe("/metrics")[1]
    assert "servekit_ready 1.0" in metrics
    assert "vllm:generation_tokens_total" in metrics
    engine = status["engine_pid"]
    assert is_running(engine)
    assert serving.stop() == 0
    assert not is_running(engine)
    assert "deviation from the contract: kv-cache-dtype is auto" in serving.output
    assert "SIGTERM: drained (exit code 0)" in serving.output


def test_probe_asks_a_running_endpoint(serve: Serve) -> None:
    """`servekit probe` returns 1 while it starts and 0 when it is ready, with the reason."""
    loading = serve(faults="--never-listen")
    wait_until(lambda: loading.observe("/livez")[0] == 200, within_s=30)
    assert probe(loading, "live").returncode == 0
    waiting = probe(loading, "ready")
    assert (waiting.returncode, waiting.stdout[:8]) == (1, "starting")
    assert loading.stop(signal.SIGINT) == 0
    serving = serve()
    serving.until_ready()
    ready = probe(serving, "ready")
    assert (ready.returncode, ready.stdout) == (0, "ready\n")


def test_sigterm_at_once(serve: Serve) -> None:
    """Stopped right after its first output, it exits with 0 and leaves no engine running."""
    serving = serve(faults="--never-listen --lose-sigterm")
    serving.until_line("servekit |")
    assert serving.stop() == 0


def test_log_as_json(serve: Serve) -> None:
    """With --log-format json every line is one object, the engine's lines included."""
    serving = serve("--log-format", "json")
    serving.until_ready()
    assert serving.stop() == 0
    records = [json.loads(line) for line in serving.lines]
    assert {record["source"] for record in records} == {"servekit", "engine"}
    assert all({"time", "level", "message"} <= record.keys() for record in records)


def test_key_is_made_and_never_told(serve: Serve, tmp_path: Path) -> None:
    """Without a key file, servekit generates a key that only its owner can read; the log has its path, not the key."""
    serving = serve()
    serving.until_ready()
    assert serving.stop() == 0
    (path,) = (tmp_path / "state").rglob("api_keys")
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(path) in serving.output
    keys = re.findall(r"^[^#\s].*", path.read_text(), re.MULTILINE)
    assert keys
    assert not any(key in serving.output for key in keys)


@pytest.mark.parametrize(
    ("faults", "flags", "code", "told"),
    [
        ("--fail-with 'torch.OutOfMemoryError: CUDA out of memory.'", (), 4, "OutOfMemoryError: CUDA out of memory"),
        ("--never-listen", ("--start-s", "1"), 4, "not ready within 1 s"),
        ("--no-token", (), 4, "the engine generated 0 tokens instead of 1"),
        ("--exit-after 0.5", (), 5, "exit code 0, which vLLM also returns when its EngineCore has died"),
        ("--exit-after 0.5 --die-by 9", (), 5, "killed by signal 9"),
        ("--wrong-name", (), 7, "another"),
        ("--runs-with-kv-cache-dtype fp8", (), 7, "kv-cache-dtype"),
    ],
)
def test_exit_codes(serve: Serve, faults: str, flags: tuple[str, ...], code: int, told: str) -> None:
    """The engine's fault determines the exit code of the process, and the last line reports it."""
    serving = serve(*flags, faults=faults)
    assert serving.end() == code
    assert told in serving.lines[-1]
    assert serving.lines[-1].endswith(f"(exit code {code})")
    assert "bug in servekit" not in serving.output


def test_hung_engine(serve: Serve) -> None:
    """An engine that has work and makes no progress ends the process with 6."""
    serving = serve("--hang-s", "1", faults="--wedge-after 0")
    serving.until_ready()
    serving.generate()
    assert serving.end() == 6


def test_drain_that_runs_out(serve: Serve) -> None:
    """A request that is cut at the end of the drain makes the exit code 8."""
    serving = serve("--drain-s", "1", faults="--slow-request-s 30")
    serving.until_ready()
    serving.generate()
    wait_until(lambda: running_requests(serving) == 1, what="the request")
    assert serving.stop() == 8


def test_taken_port(serve: Serve, tmp_path: Path) -> None:
    """A port in use ends with 3 and names the flag to change; no engine is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        serving = serve("--port", str(other.getsockname()[1]), faults=f"--orphan {tmp_path / 'pid'}")
        assert serving.end() == 3
    assert "--port" in serving.output
    assert not (tmp_path / "pid").exists()


def test_taken_observe_port(serve: Serve) -> None:
    """servekit's own port in use ends the same way, with its own flag."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        serving = serve("--observe-port", str(other.getsockname()[1]))
        assert serving.end() == 3
    assert "--observe-port" in serving.output


def test_missing_engine(serve: Serve) -> None:
    """A missing engine program ends with 3 and explains how to install it."""
    serving = serve(engine="/nowhere/vllm")
    assert serving.end() == 3
    assert "no such program" in serving.output
    assert "make install" in serving.output
    assert "SERVEKIT_ENGINE" in serving.output


def test_folder_that_cannot_be_made(serve: Serve, tmp_path: Path) -> None:
    """A state folder below a file is a configuration error, not a traceback."""
    (tmp_path / "file").write_text("")
    serving = serve("--state-dir", str(tmp_path / "file" / "state"))
    assert serving.end() == 2
    assert "choose another folder" in serving.output


def probe(serving: Serving, question: str) -> "subprocess.CompletedProcess[str]":
    """Run `servekit probe`."""
    program = [str(PROGRAM), "probe", question, "--observe-port", str(serving.observe_port)]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def running_requests(serving: Serving) -> int:
    """Return how many requests the engine is working on."""
    with urllib.request.urlopen(f"http://127.0.0.1:{serving.port}/_servekit/counters", timeout=60) as answer:
        return int(json.loads(answer.read())["in_flight"])


def test_the_guard_gets_the_bound_of_the_memory_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once preflight has planned the memory, the guard's configuration has the longest prompt with penalties."""
    path = prepare_guard(GuardSettings(state_dir=tmp_path, max_in_flight=8), tmp_path).config_path
    memory = SimpleNamespace(pool_tokens=1, full_requests=1.0, max_model_len=1, shortages=None)
    found = SimpleNamespace(findings=(), skipped=(), failed=False, memory=memory)
    monkeypatch.setattr(run, "examine", lambda _plan: found)
    plan: Any = SimpleNamespace(run_dir=tmp_path, as_given=None)
    run._check(plan, set())
    assert json.loads(path.read_text())["penalised_tokens"] is None
    memory.shortages = SimpleNamespace(penalised_tokens=77)
    run._check(plan, set())
    assert json.loads(path.read_text())["penalised_tokens"] == 77
