"""servekit's own server: correct answers in every state, over real HTTP."""

import contextlib
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from servekit.errors import PreflightError
from servekit.observe.endpoints import _KEPT_WORKERS, _MOST_CONNECTIONS, Endpoints, Server, _QuietHandler
from servekit.observe.metrics import make_registry, status_families
from servekit.profile import load_profile
from servekit.serve.plan import Plan, build_plan
from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.watch.probe import ProbeError, query_server
from servekit.serve.watch.running_contract import ContractItem
from servekit.settings import read_settings

ENGINE_METRICS = '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} 3.0\n'


@pytest.fixture
def plan(root: Path) -> Plan:
    """The shipped profile on the CPU."""
    profile = load_profile(root / "vllm_config.yaml")
    return build_plan(profile, read_settings({"target": "cpu"}, {}), {})


@pytest.fixture
def store() -> StatusStore:
    """The status of an endpoint that starts."""
    store = StatusStore()
    store.enter_phase(Phase.PREFLIGHT)
    store.enter(State.STARTING, "the engine is loading")
    return store


class EngineMetrics:
    """The engine's metrics, or none."""

    up = True

    def __call__(self) -> str:
        if not self.up:
            raise ProbeError("refused")
        return ENGINE_METRICS


@pytest.fixture
def engine_metrics() -> EngineMetrics:
    """The engine's metrics, which a test may turn off."""
    return EngineMetrics()


@pytest.fixture
def server(plan: Plan, store: StatusStore, engine_metrics: EngineMetrics) -> Iterator[Server]:
    """The server on a port that the kernel chose."""
    registry = make_registry(lambda: status_families(plan, store.read(), time.monotonic()))
    endpoints = Endpoints(plan, store, registry, engine_metrics)
    with Server(endpoints, "127.0.0.1", 0) as server:
        yield server


def get(url: str, method: str = "GET") -> tuple[int, str]:
    """Return status and body."""
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("state", "live", "ready", "text"),
    [
        (State.STARTING, 200, 503, "starting (weights): why\n"),
        (State.READY, 200, 200, "ready\n"),
        (State.SILENT, 200, 503, "silent: why\n"),
        (State.DRAINING, 200, 503, "draining: why\n"),
        (State.STOPPED, 200, 503, "stopped: why\n"),
        (State.FAILED, 503, 503, "failed: why\n"),
    ],
)
def test_probes_in_every_state(
    server: Server, store: StatusStore, state: State, live: int, ready: int, text: str
) -> None:
    """Liveness stays green until servekit fails; readiness is green only while it accepts requests."""
    store.enter_phase(Phase.WEIGHTS)
    store.enter(state, "why")
    assert get(f"{server.url}/livez")[0] == live
    assert get(f"{server.url}/readyz") == (ready, text)
    assert query_server(server.url, "ready") == (ready == 200, text.strip())
    assert query_server(server.url, "live")[0] is (live == 200)


def test_an_answer_says_how_long_servekit_took(plan: Plan, store: StatusStore) -> None:
    """The measured time begins with the connection, so that it includes the wait for a thread."""

    class Late(Endpoints):
        def answer(self, method: str, path: str) -> tuple[str, str, bytes]:
            time.sleep(0.2)
            return super().answer(method, path)

    endpoints = Late(plan, store, make_registry(), lambda: "")
    with Server(endpoints, "127.0.0.1", 0) as server, urllib.request.urlopen(f"{server.url}/livez") as answer:
        header = answer.headers["Server-Timing"]
    name, _, milliseconds = header.partition(";dur=")
    assert name == "servekit"
    assert float(milliseconds) >= 200


def test_probe_without_a_server(free_port: int) -> None:
    """If the server does not answer, the probe is negative and names the address."""
    answer, reason = query_server(f"http://127.0.0.1:{free_port}", "live")
    assert not answer
    assert f"no servekit answers on http://127.0.0.1:{free_port}" in reason


def test_status_has_everything(server: Server, store: StatusStore) -> None:
    """The status is JSON with state, history, phases, contract and plan."""
    store.record(contract=(ContractItem("max-num-seqs", 1024, 256),))
    store.enter(State.READY, "the engine answers")
    body = json.loads(get(f"{server.url}/status")[1])
    assert (body["state"], body["ready"], body["phase"]) == ("ready", True, None)
    assert [change["state"] for change in body["transitions"]] == ["starting", "ready"]
    assert [phase["phase"] for phase in body["start_phases"]] == ["preflight"]
    assert body["contract"] == [{"item": "max-num-seqs", "wanted": 1024, "got": 256, "met": False}]
    assert body["plan"]["deviations"][0]["key"] == "kv-cache-dtype"


def test_metrics_are_one_valid_target(server: Server, store: StatusStore) -> None:
    """servekit's families come first, then the engine's, and Prometheus' own parser accepts them as one page."""
    store.enter(State.READY, "the engine answers")
    items = (ContractItem("max-num-seqs", 1024, 1024), ContractItem("kv-cache-dtype", "fp8_e4m3", "auto"))
    store.record(contract=items)
    samples = scrape(server)
    assert samples['servekit_state{state="ready"}'] == 1
    assert samples['servekit_state{state="starting"}'] == 0
    assert samples["servekit_ready{}"] == 1
    assert samples['servekit_start_phase_seconds{phase="preflight"}'] >= 0
    assert samples['servekit_contract_info{item="max-num-seqs",wanted="1024"}'] == 1
    assert samples['servekit_contract_met{item="kv-cache-dtype"}'] == 0
    assert any(name.startswith('servekit_deviation_info{key="kv-cache-dtype"') for name in samples)
    assert any(name.startswith('servekit_build_info{engine_version="0.20.2"') for name in samples)
    assert samples["servekit_process_resident_memory_bytes{}"] > 1_000_000
    assert samples["servekit_engine_scrape_success{}"] == 1
    assert samples['vllm:num_requests_running{engine="0"}'] == 3


def test_metrics_without_an_engine(server: Server, engine_metrics: EngineMetrics) -> None:
    """If the engine does not answer, all of servekit's own metrics stay, and one of them reports it."""
    engine_metrics.up = False
    samples = scrape(server)
    assert samples["servekit_engine_scrape_success{}"] == 0
    assert samples["servekit_ready{}"] == 0
    assert not [name for name in samples if name.startswith("vllm:")]
    assert not [name for name in samples if name.startswith("servekit_contract_met")], "never checked, so absent"


def test_what_is_not_here(server: Server) -> None:
    """Another path is 404 and lists the existing ones; another method is 405; HEAD has no body."""
    assert get(f"{server.url}/healthz") == (404, "not found; the paths are /livez /readyz /status /metrics /\n")
    assert get(f"{server.url}/livez", "POST") == (405, "only GET and HEAD are allowed\n")
    assert get(f"{server.url}/livez", "HEAD") == (200, "")


def test_taken_port_is_explained(server: Server, plan: Plan, store: StatusStore) -> None:
    """A port in use is a clear error."""
    endpoints = Endpoints(plan, store, make_registry(), EngineMetrics())
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(PreflightError, match=f"127.0.0.1:{port}: servekit's own server cannot listen here: Address"):
        Server(endpoints, "127.0.0.1", port)


def scrape(server: Server) -> dict[str, float]:
    """Return every sample of the metrics page by its name and labels."""
    page = get(f"{server.url}/metrics")[1]
    return {
        _series(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def _series(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"


def test_clients_that_say_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Idle and reset connections log nothing, and the next request is answered."""
    monkeypatch.setattr(_QuietHandler, "timeout", 0.05)
    address = ("127.0.0.1", server.server_port)
    with socket.create_connection(address) as idle:
        assert idle.recv(1) == b"", "the idle connection is closed"
    with socket.create_connection(address) as reset:
        reset.sendall(b"GET /livez HTTP/1.1\r\n")
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert get(f"{server.url}/livez")[0] == 200
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_more_connections_than_threads(
    server: Server, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """However many clients connect and send nothing, probes are answered, by a bounded number of threads."""
    with contextlib.ExitStack() as idle:
        first = idle.enter_context(socket.create_connection(("127.0.0.1", server.server_port)))
        for _ in range(300):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.server_port)))
        assert get(f"{server.url}/livez")[0] == 200
        assert sum(thread.name == "worker" for thread in threading.enumerate()) <= _MOST_CONNECTIONS + _KEPT_WORKERS
        first.settimeout(5)
        assert first.recv(1) == b"", "the oldest is cut"
    assert get(f"{server.url}/readyz")[0] == 503
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_connections_that_wait_for_the_engine(plan: Plan, store: StatusStore) -> None:
    """If every thread waits for a frozen engine, further connections are closed instead of collected without end."""
    go_on = threading.Event()

    class Frozen(Endpoints):
        def answer(self, method: str, path: str) -> tuple[str, str, bytes]:
            assert go_on.wait(20)
            return super().answer(method, path)

    with (
        Server(Frozen(plan, store, make_registry(), lambda: ""), "127.0.0.1", 0) as server,
        contextlib.ExitStack() as open_,
    ):
        for _ in range(5 * _MOST_CONNECTIONS):
            client = open_.enter_context(socket.create_connection(("127.0.0.1", server.server_port)))
            client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b"", "the last is closed"
        assert server._workers.waiting <= _MOST_CONNECTIONS
        go_on.set()


def test_the_host_has_no_name(plan: Plan, store: StatusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server binds without a DNS lookup, which may take seconds."""
    monkeypatch.setattr(socket, "getfqdn", lambda _: pytest.fail("asked for the host's name"))
    endpoints = Endpoints(plan, store, make_registry(), lambda: "")
    with Server(endpoints, "127.0.0.1", 0) as running:
        assert get(f"{running.url}/livez")[0] == 200
