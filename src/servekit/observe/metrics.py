"""servekit's own metric families, built fresh from the status at each scrape, and the engine's own after them."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from servekit import ENGINE_VERSION, __version__
from servekit.serve.plan import Plan
from servekit.serve.status import State, StatusStore
from servekit.serve.watch.probe import ProbeError


class StatusCollector(Collector):
    """The status of the endpoint as metric families.

    servekit_state{state="ready"} 1.0
    servekit_ready 1.0
    servekit_start_seconds 27.4
    servekit_start_phase_seconds{phase="weights"} 3.1
    servekit_contract_info{item="kv-cache-dtype",wanted="fp8_e4m3"} 1.0
    servekit_contract_met{item="kv-cache-dtype"} 1.0           only once the running engine was asked
    servekit_deviation_info{key="kv-cache-dtype",wanted="fp8_e4m3",used="auto",reason="..."} 1.0
    servekit_build_info{version="0.1.0",engine_version="0.20.2",python="3.11.2"} 1.0
    """

    def __init__(self, plan: Plan, board: StatusStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._board = board
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yield the families of this moment."""
        status = self._board.read()
        now = self._clock()
        state = GaugeMetricFamily("servekit_state", "1 for the state the endpoint is in.", labels=["state"])
        for each in State:
            state.add_metric([each.value], float(each is status.state))
        yield state
        yield GaugeMetricFamily("servekit_ready", "1 while requests are welcome.", float(status.state is State.READY))
        yield GaugeMetricFamily(
            "servekit_start_seconds",
            "How long the start took, or has taken so far.",
            status.start_seconds(now),
        )
        phases = GaugeMetricFamily(
            "servekit_start_phase_seconds", "How long each phase of the start took.", labels=["phase"]
        )
        for span in status.timeline(now):
            phases.add_metric([span.phase.value], span.seconds)
        yield phases
        yield _info(
            "servekit_contract",
            "The values that must hold in the running engine.",
            ("item", "wanted"),
            ((item, str(wanted)) for item, wanted in self._plan.arguments.contract.items()),
        )
        if status.contract:
            met = GaugeMetricFamily(
                "servekit_contract_met", "1 where the running engine does what was planned.", labels=["item"]
            )
            for item in status.contract:
                met.add_metric([item.name], float(item.met))
            yield met
        yield _info(
            "servekit_deviation",
            "Contract values knowingly not met.",
            ("key", "wanted", "used", "reason"),
            ((d.key, str(d.wanted), str(d.used), d.reason) for d in self._plan.deviations),
        )
        build = {
            "version": __version__,
            "engine_version": ENGINE_VERSION,
            "python": platform.python_version(),
            "target": self._plan.target.value,
        }
        yield InfoMetricFamily("servekit_build", "What runs here.", build)


def make_registry(*collectors: Collector) -> CollectorRegistry:
    """Return a registry of its own with `collectors` and servekit's own process figures."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    # Prefixed: the engine exports the unprefixed names for its own process in the same scrape.
    ProcessCollector(namespace="servekit", registry=registry)
    return registry


def exposition(registry: CollectorRegistry, read_engine: Callable[[], str]) -> bytes:
    """Return servekit's families, then the engine's as they are, in the Prometheus text format 0.0.4."""
    began_s = time.monotonic()
    try:
        engine, up = read_engine().encode(), 1
    except ProbeError:
        engine, up = b"", 0
    scrape = (
        "# HELP servekit_engine_scrape_success 1 when the engine's own metrics follow.\n"
        "# TYPE servekit_engine_scrape_success gauge\n"
        f"servekit_engine_scrape_success {up}.0\n"
        "# HELP servekit_engine_scrape_seconds How long reading them took.\n"
        "# TYPE servekit_engine_scrape_seconds gauge\n"
        f"servekit_engine_scrape_seconds {time.monotonic() - began_s:.6f}\n"
    )
    return generate_latest(registry) + scrape.encode() + engine


def _info(name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Metric:
    # Several series of one info metric: InfoMetricFamily holds only one, so it is spelled as the gauge it becomes.
    family = GaugeMetricFamily(f"{name}_info", text, labels=labels)
    for row in rows:
        family.add_metric(row, 1.0)
    return family
