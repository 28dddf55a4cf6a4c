"""How the real engine ends: by a signal in each phase, by death, by a mistake; and no process is left."""

import contextlib
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from servekit.serve.engine import keeper
from servekit.serve.guard import LEDGER_FILE_NAME
from servekit.serve.guard.inside.servekit_guard.usage.ledger import OWN, Usage, read_ledger
from tests.conftest import wait_until
from tests.harness.endpoint import Endpoint
from tests.harness.http import get
from tests.harness.processes import descendants, is_running
from tests.serve.test_tls import make_certificate

Serve = Callable[..., Endpoint]


@pytest.mark.parametrize("phase", ["imports", "engine", "weights", "warm-up"])
def test_sigterm_while_it_starts(serve: Serve, phase: str) -> None:
    """SIGTERM in any phase of the start, where vLLM loses it, ends everything within seconds with 0."""
    endpoint = serve()
    endpoint.until_line(f"starting: {phase}")
    below = descendants(endpoint.process.pid)
    assert endpoint.stop(within_s=60) == 0
    assert not any(is_running(pid) for pid in below)
    assert "during the start: the engine was killed (exit code 0)" in endpoint.lines[-1]


def test_drain_of_a_running_stream(serve: Serve) -> None:
    """SIGTERM lets a running stream complete, turns readiness off, refuses new connections and exits with 0."""
    endpoint = serve("--drain-s", "60")
    endpoint.until_ready()
    client = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=90)
    first, ended = threading.Event(), []

    def stream() -> None:
        extra: dict[str, Any] = {"ignore_eos": True}
        made = client.completions.create(
            model="gemma4-demo", prompt="Once", max_tokens=600, stream=True, extra_body=extra
        )
        for chunk in made:
            first.set()
            ended.append(chunk.choices[0].finish_reason)

    thread = threading.Thread(target=stream)
    thread.start()
    assert first.wait(30)
    endpoint.process.send_signal(signal.SIGTERM)
    endpoint.until(lambda: endpoint.observe("/readyz")[0] == 503, "draining", within_s=30)
    assert endpoint.observe("/livez")[0] == 200
    assert thread.is_alive(), "the stream still runs"
    assert endpoint.end(90) == 0
    thread.join(5)
    client.close()
    assert len(ended) > 500
    assert ended[-1] == "length"
    assert any("SIGTERM: drained (exit code 0)" in line for line in endpoint.lines)


def test_ctrl_c_stops_an_idle_endpoint(serve: Serve) -> None:
    """Ctrl-C (SIGINT) drains too, and exits quickly if no request runs."""
    endpoint = serve()
    endpoint.until_ready()
    below = descendants(endpoint.process.pid)
    assert endpoint.stop(signal.SIGINT, within_s=90) == 0
    assert not any(is_running(pid) for pid in below)


@pytest.mark.parametrize("victim", ["core", "worker", "server", "keeper"])
def test_killed_engine(serve: Serve, victim: str) -> None:
    """Whichever engine process is killed, servekit soon exits with 5, never vLLM's 0, and leaves no process behind.

    The books never say that the client left.
    """
    endpoint = serve()
    endpoint.until_ready()
    processes = endpoint.roles()
    below = descendants(endpoint.process.pid)
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    body = {"model": "gemma4-demo", "prompt": "a secret", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{endpoint.url}/v1/completions", headers=headers, json=body, timeout=60) as stream:
        lines = stream.iter_lines()  # kept: without a reference the stream would be closed
        next(lines)
        os.kill(processes[victim], signal.SIGKILL)
        assert endpoint.end(within_s=90) == 5
    assert not any(is_running(pid) for pid in below)
    assert any("the engine ended while serving" in line for line in endpoint.lines)
    _, mine = usage_of_the_client(endpoint)
    assert (mine.failed + mine.in_flight, mine.cancelled) == (1, 0)  # still in flight: the server died first
    own = [line for line in endpoint.lines if line.startswith("servekit")]
    assert not [line for line in own if "NVIDIA" in line], "an exception of the workers' tidying up is no cause"
    place = next(number for number, line in enumerate(own) if "in flight: 1 request, the latest first:" in line)
    assert " /v1/completions, " in own[place + 1]
    assert not any("a secret" in line for line in endpoint.lines)


def test_killed_servekit_leaves_no_engine(serve: Serve) -> None:
    """When servekit itself gets SIGKILL, the whole engine ends too."""
    endpoint = serve()
    endpoint.until_line("starting: weights")
    below = descendants(endpoint.process.pid)
    assert len(below) >= 3
    endpoint.process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in below), within_s=5, what="the end of the whole engine")


def test_killed_servekit_loses_no_token(serve: Serve) -> None:
    """SIGKILL of servekit under a stream: the server, which alone handles the signal, books all that its client got."""
    endpoint = serve()
    endpoint.until_ready()
    below = descendants(endpoint.process.pid)
    assert [role for role, pid in endpoint.roles().items() if catches(pid, keeper.BOOK)] == ["server"]
    body = {"model": "gemma4-demo", "prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    headers, tokens = {"Authorization": f"Bearer {endpoint.key}"}, 0
    with (
        httpx.stream("POST", f"{endpoint.url}/v1/completions", headers=headers, json=body, timeout=60) as stream,
        contextlib.suppress(httpx.TransportError),
    ):
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
                if tokens >= 100:
                    endpoint.process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in below), what="the end of the whole engine")
    whole, mine = usage_of_the_client(endpoint)
    assert (whole, mine.in_flight) == (True, 1)
    assert mine.output_tokens >= tokens >= 100


def usage_of_the_client(endpoint: Endpoint) -> tuple[bool, Usage]:
    """Return whether the run's ledger was closed, and what the only key has in it."""
    _, used, whole = read_ledger(endpoint.state_dir / f"run-{endpoint.port}" / LEDGER_FILE_NAME)
    [mine] = (usage for name, usage in used.items() if name != OWN)
    return whole, mine


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal (proc_pid_status(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def test_taken_port(serve: Serve) -> None:
    """A port in use is reported before anything is started, even when vLLM's own bind would succeed."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = serve("--port", str(taken.getsockname()[1]))
        assert endpoint.end(10) == 3
    assert any("--port: cannot listen on 127.0.0.1" in line for line in endpoint.lines)


def test_missing_model(serve: Serve) -> None:
    """A missing checkpoint is a failed start with the engine's own reason and a remedy."""
    endpoint = serve("--model", "/nowhere/model")
    code = endpoint.end(90)
    assert code in {3, 4}
    assert any(line.startswith("servekit | error: /nowhere/model: ") for line in endpoint.lines)


def test_json_log(serve: Serve) -> None:
    """With --log-format json every line is one JSON object, the engine's lines included."""
    endpoint = serve("--log-format", "json")
    endpoint.until_line("Initializing a V1 LLM engine")
    assert endpoint.stop() == 0
    records = [json.loads(line) for line in endpoint.lines]
    assert {record["source"] for record in records} == {"servekit", "engine"}


@pytest.mark.parametrize("victim", ["core", "worker"])
def test_stopped_engine_is_found(serve: Serve, victim: str) -> None:
    """An engine that stalls while /health stays green is detected within the hang time and a tick: exit code 6."""
    endpoint = serve("--hang-s", "12")
    endpoint.until_ready()
    below = descendants(endpoint.process.pid)
    os.kill(endpoint.roles()[victim], signal.SIGSTOP)
    client = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=60)
    began = time.monotonic()

    def ask() -> None:
        with contextlib.suppress(openai.APIError):
            client.completions.create(model="gemma4-demo", prompt="x", max_tokens=4)

    thread = threading.Thread(target=ask)
    thread.start()
    assert endpoint.end(within_s=120) == 6
    assert time.monotonic() - began > 10
    thread.join(10)
    client.close()
    assert not any(is_running(pid) for pid in below)
    assert any("the engine hangs" in line for line in endpoint.lines)


def test_https_by_the_engine(serve: Serve, tmp_path: Path) -> None:
    """With the operator's certificate the endpoint serves HTTPS, and servekit verifies the server by it."""
    chain, key = make_certificate(tmp_path)
    endpoint = serve("--tls-cert", str(chain), "--tls-key", str(key))
    endpoint.until_ready()
    trusting = ssl.create_default_context(cafile=str(chain))
    trusting.check_hostname = False
    with httpx.Client(verify=trusting, headers={"Authorization": f"Bearer {endpoint.key}"}) as client:
        assert client.get(f"https://127.0.0.1:{endpoint.port}/v1/models").status_code == 200
    assert get(f"http://127.0.0.1:{endpoint.port}/health")[0] == 0, "plain HTTP is not spoken"
    assert endpoint.status()["endpoint"] == f"https://127.0.0.1:{endpoint.port}/v1"
    assert endpoint.stop() == 0
