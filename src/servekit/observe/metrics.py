"""servekit's own metric families, built fresh from the status at each scrape, and the engine's own after them."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from servekit import ENGINE_VERSION, __version__
from servekit.observe.families import family
from servekit.serve.plan import Plan
from servekit.serve.status import State, Status
from servekit.serve.watch.probe import ProbeError


def status_families(plan: Plan, status: Status, now_s: float) -> Iterator[Metric]:
    """Yield the status of the endpoint at the monotonic second `now_s`.

    servekit_state{state="ready"} 1.0
    servekit_ready 1.0
    servekit_start_seconds 27.4
    servekit_start_phase_seconds{phase="weights"} 3.1
    servekit_download_bytes 5.1e9                                  only where the start downloads
    servekit_download_total_bytes 9.3e9
    servekit_model_info{model="owner/name",revision="main",commit="0123..."} 1.0
    servekit_contract_info{item="kv-cache-dtype",wanted="fp8_e4m3"} 1.0
    servekit_contract_met{item="kv-cache-dtype"} 1.0           only once the running engine has reported
    servekit_embeddings_info{planned="host or gpu",memory="host"} 1.0       likewise: where the tensor is
    servekit_deviation_info{key="kv-cache-dtype",wanted="fp8_e4m3",used="auto",reason="..."} 1.0
    servekit_build_info{version="0.1.0",engine_version="0.20.2",python="3.11.2"} 1.0
    """
    yield family(
        GaugeMetricFamily,
        "servekit_state",
        "1 for the current state of the endpoint.",
        ("state",),
        {(each.value,): each is status.state for each in State},
    )
    yield family(
        GaugeMetricFamily,
        "servekit_ready",
        "1 while the endpoint accepts requests.",
        (),
        {(): status.state is State.READY},
    )
    yield family(
        GaugeMetricFamily,
        "servekit_start_seconds",
        "How long the start took, or has taken so far.",
        (),
        {(): status.start_seconds(now_s)},
    )
    yield family(
        GaugeMetricFamily,
        "servekit_start_phase_seconds",
        "How long each phase of the start took, or has taken so far.",
        ("phase",),
        {(phase.value,): seconds for phase, seconds in status.timeline(now_s).items()},
    )
    if status.download:
        yield family(
            GaugeMetricFamily,
            "servekit_download_bytes",
            "Bytes of the model in the cache, during and after a download.",
            (),
            {(): status.download.bytes},
        )
        yield family(
            GaugeMetricFamily,
            "servekit_download_total_bytes",
            "Bytes of the model.",
            (),
            {(): status.download.total or None},
        )
    model = {
        "model": plan.model if plan.hub else Path(plan.model).name,
        "revision": plan.hub.revision if plan.hub else "",
        "commit": status.commit,
    }
    yield InfoMetricFamily("servekit_model", "The model that is served; revision and commit of a hub model.", model)
    # InfoMetricFamily holds only one series: an info metric with several is written as the gauge it becomes.
    yield family(
        GaugeMetricFamily,
        "servekit_contract_info",
        "The values that must hold in the running engine.",
        ("item", "wanted"),
        {(item, str(wanted)): 1 for item, wanted in plan.arguments.contract.items()},
    )
    if status.contract:
        yield family(
            GaugeMetricFamily,
            "servekit_contract_met",
            "1 where the running engine has the planned value.",
            ("item",),
            {(item.name,): item.met for item in status.contract},
        )
        yield family(
            GaugeMetricFamily,
            "servekit_embeddings_info",
            "The memory of the per-layer embeddings: as planned, and as read from the loaded tensor.",
            ("planned", "memory"),
            {(str(each.wanted), str(each.got)): 1 for each in status.contract if each.name == "per-layer-embeddings"},
        )
    yield family(
        GaugeMetricFamily,
        "servekit_deviation_info",
        "Contract values that the operator chose not to meet.",
        ("key", "wanted", "used", "reason"),
        {(d.key, str(d.wanted), str(d.used), d.reason): 1 for d in plan.deviations},
    )
    build = {
        "version": __version__,
        "engine_version": ENGINE_VERSION,
        "python": platform.python_version(),
        "target": plan.target.value,
    }
    yield InfoMetricFamily("servekit_build", "The versions that run here.", build)


class _Scraped(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


def make_registry(*readers: Callable[[], Iterable[Metric]]) -> CollectorRegistry:
    """Return a registry of what `readers` return at each scrape, and of the metrics of servekit's own process."""
    registry = CollectorRegistry()
    for read in readers:
        registry.register(_Scraped(read))
    # Prefixed: the engine exports the unprefixed names for its own process in the same scrape.
    ProcessCollector(namespace="servekit", registry=registry)
    return registry


def exposition(registry: CollectorRegistry, read_engine: Callable[[], str]) -> bytes:
    """Return servekit's families, then the engine's unchanged, in the Prometheus text format 0.0.4."""
    began_s = time.monotonic()
    try:
        engine, up = read_engine().encode(), 1
    except ProbeError:
        engine, up = b"", 0
    scrape = (
        "# HELP servekit_engine_scrape_success 1 when the engine's own metrics follow.\n"
        "# TYPE servekit_engine_scrape_success gauge\n"
        f"servekit_engine_scrape_success {up}.0\n"
        "# HELP servekit_engine_scrape_seconds How long it took to read the engine's own metrics.\n"
        "# TYPE servekit_engine_scrape_seconds gauge\n"
        f"servekit_engine_scrape_seconds {time.monotonic() - began_s:.6f}\n"
    )
    return generate_latest(registry) + scrape.encode() + engine
