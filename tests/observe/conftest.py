"""The status page of an endpoint that a test controls, and a real browser to view it."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from servekit.observe.endpoints import Endpoints, Server
from servekit.observe.metrics import make_registry, status_families
from servekit.profile import load_profile
from servekit.serve.plan import Plan, build_plan
from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.watch.probe import ProbeError
from servekit.serve.watch.running_contract import ContractItem
from servekit.settings import Target, read_settings
from tests.harness.browser import browser, chromium

__all__ = ["browser", "chromium"]


@dataclass
class Engine:
    """What the engine's server reports: its own metrics, and the guard's counters in the registry."""

    up: bool = True
    tokens: int = 1_204_311
    tokens_per_reading: int = 0
    refused: dict[str, int] = field(default_factory=lambda: {"unauthorized": 9, "too_busy": 5})
    gpu: bool = False
    answers: threading.Event = field(default_factory=threading.Event)
    """If cleared, the engine delays its answers."""

    def __post_init__(self) -> None:
        self.answers.set()

    def __call__(self) -> str:
        """Return the metrics in vLLM's format."""
        if not self.up:
            raise ProbeError("refused")
        if not self.answers.wait(20):
            raise ProbeError("timed out")
        self.tokens += self.tokens_per_reading
        labels = '{engine="0",model_name="m {x} \\"y\\""}'
        return (
            f"vllm:num_requests_running{labels} 37.0\n"
            f"vllm:num_requests_waiting{labels} 2.0\n"
            f"vllm:generation_tokens_total{labels} {self.tokens}.0\n"
            f"vllm:prompt_tokens_total{labels} {3 * self.tokens}.0\n"
            f"vllm:kv_cache_usage_perc{labels} 0.4183\n"
        )

    def collect(self) -> Iterator[Metric]:
        """Return the guard's counters, and a GPU's metrics if there is one."""
        if not self.up:
            return
        requests = CounterMetricFamily("servekit_guard_requests", "...", labels=["route", "outcome"])
        requests.add_metric(["/v1/chat/completions", "allowed"], 18_204)
        for outcome, count in self.refused.items():
            requests.add_metric(["/v1/chat/completions", outcome], count)
        yield requests
        yield GaugeMetricFamily("servekit_guard_in_flight", "...", 39)
        yield GaugeMetricFamily("servekit_guard_max_in_flight", "...", 2048)
        if self.gpu:
            yield GaugeMetricFamily("servekit_gpu_power_watts", "...", 68.4)
            yield CounterMetricFamily("servekit_gpu_energy_joules", "...", 742_680)


class Clock:
    """A monotonic clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Site:
    """A status page that is served, and the objects behind it."""

    plan: Plan
    store: StatusStore
    engine: Engine
    clock: Clock
    endpoints: Endpoints
    server: Server

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"{self.server.url}/"

    def server_again(self) -> Server:
        """Recreate the server on the same port."""
        return Server(self.endpoints, "127.0.0.1", int(self.server.url.rpartition(":")[2]))

    def load(self, *, until: Phase = Phase.VERIFY) -> None:
        """Go through the phases of a start up to `until`, each as long as on a GPU."""
        self.store.enter(State.STARTING, "checking and preparing")
        for phase, seconds in START.items():
            self.store.enter_phase(phase)
            if phase is until:
                break
            self.clock.now += seconds

    def become_ready(self) -> None:
        """Finish the start with a contract that is met."""
        self.load()
        self.clock.now += START[Phase.VERIFY]
        self.store.record(engine_pid=4711, contract=MET)
        self.store.enter(State.READY, "the engine answers and the contract is met")


START = {
    Phase.PREFLIGHT: 0.8,
    Phase.IMPORTS: 9.6,
    Phase.ENGINE: 6.1,
    Phase.WEIGHTS: 14.9,
    Phase.COMPILE: 38.2,
    Phase.WARM_UP: 11.7,
    Phase.VERIFY: 1.3,
}

MET = (
    ContractItem("kv-cache-dtype", "fp8_e4m3", "fp8_e4m3"),
    ContractItem("quantization", "compressed-tensors", "compressed-tensors"),
    ContractItem("max-num-seqs", 1024, 1024),
    ContractItem("attention-backend", "TRITON_ATTN", "TRITON_ATTN"),
    ContractItem("served-model-name", ["gemma4-E4B-opt"], ["gemma4-E4B-opt"]),
    ContractItem("image limit", 3, 3),
    ContractItem("audio limit", 0, 0),
    ContractItem("video limit", 0, 0),
    ContractItem("enable-prefix-caching", wanted=True, got=True),
    ContractItem("enable-chunked-prefill", wanted=True, got=True),
    ContractItem("max-model-len", 20000, 20000),
    ContractItem("max-num-batched-tokens", 4096, 4096),
)


@pytest.fixture
def target() -> Target:
    """The target of the page's engine; the CPU has a deviation to show."""
    return Target.CUDA


@pytest.fixture
def served_name() -> str:
    """The name of the model on the page."""
    return "gemma4-E4B-opt"


@pytest.fixture
def site(root: Path, target: Target, served_name: str) -> Iterator[Site]:
    """The page of an endpoint that has just begun to start."""
    settings = read_settings({"served_name": served_name, "target": target}, {})
    profile = load_profile(root / "vllm_config.yaml")
    plan = build_plan(profile, settings, {})
    clock, engine = Clock(), Engine()
    began = time.time() - 3600
    store = StatusStore(clock, lambda: began + clock())
    registry = make_registry(lambda: status_families(plan, store.read(), clock()), engine.collect)
    endpoints = Endpoints(plan, store, registry, engine, clock)
    with Server(endpoints, "127.0.0.1", 0) as server:
        yield Site(plan, store, engine, clock, endpoints, server)
