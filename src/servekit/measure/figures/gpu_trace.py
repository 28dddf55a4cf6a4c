"""What a trace has of each GPU, and the energy of all of them in a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from servekit.measure.figures.counters import parse_name
from servekit.measure.figures.energy import Estimate, Sample, count_energy, find_gaps, integrate_power
from servekit.measure.record import Energy, Gaps, GpuEnergy
from servekit.measure.trace import Trace

Reading = Mapping[str, Any]
"""A `gpu` event of the trace: `t` and the fields of GpuReadings."""

_SCRAPED = {
    "servekit_gpu_energy_joules_total": "energy_j",
    "servekit_gpu_power_watts": "power_w",
    "servekit_gpu_power_limit_watts": "power_limit_w",
    "servekit_gpu_temperature_celsius": "temperature_c",
}


@dataclass(frozen=True)
class GpuTrace:
    """The readings of one GPU, in order of time."""

    uuid: str
    readings: Sequence[Reading]
    interval_s: float

    @property
    def samples(self) -> list[Sample]:
        """The energy counter and the power; the mean of a second where the driver reports no instant power."""
        return [
            Sample(
                each["t"],
                each.get("energy_j"),
                each.get("power_w") if each.get("power_instant_w") is None else each["power_instant_w"],
            )
            for each in self.readings
        ]

    def inside(self, start_s: float, end_s: float) -> list[Reading]:
        """Return the readings in a window."""
        return [each for each in self.readings if start_s <= each["t"] <= end_s]

    def values(self, name: str, start_s: float, end_s: float) -> list[Any]:
        """Return the known values of a field in a window."""
        return [each[name] for each in self.inside(start_s, end_s) if each.get(name) is not None]


def gpu_traces(trace: Trace, uuids: Sequence[str]) -> list[GpuTrace]:
    """Return the readings of these GPUs: NVML's, or servekit's own metrics where the measuring host has no such GPU."""
    begin = trace.one("begin")
    read = {uuid: [each for each in trace.all("gpu") if each["gpu"] == uuid] for uuid in uuids}
    scraped = {uuid: [] if read[uuid] else _scraped(trace, uuid) for uuid in uuids}
    return [
        GpuTrace(uuid, read[uuid] or scraped[uuid], begin["interval_s"] if read[uuid] else begin["scrape_s"])
        for uuid in uuids
    ]


def energy_between(gpus: Sequence[GpuTrace], start_s: float, end_s: float, idle_w: float | None = None) -> Energy:
    """Return the energy of all GPUs in a window; `idle_w` is their power without a load."""
    parts = [_gpu_energy(gpu, start_s, end_s) for gpu in gpus]
    whole = Estimate(sum(each.joules or 0.0 for each in parts), sum(each.error_j or 0.0 for each in parts))
    missing = "; ".join(f"{each.uuid}: {each.why}" for each in parts if each.why)
    if not parts:
        missing = "neither NVML nor servekit reports a GPU of this endpoint"
    joules = None if missing else whole.joules
    duration_s = end_s - start_s
    share = f"the readings leave an error of up to {whole.error_j / whole.joules:.1%}" if whole.joules else "0 J"
    return Energy(
        joules=joules,
        within_half_percent=joules is not None and whole.good,
        why=missing or ("" if whole.good else share),
        mean_power_w=joules / duration_s if joules is not None and duration_s > 0 else None,
        above_idle_j=joules - idle_w * duration_s if joules is not None and idle_w is not None else None,
        gpus=parts,
    )


def _gpu_energy(gpu: GpuTrace, start_s: float, end_s: float) -> GpuEnergy:
    samples = gpu.samples
    limits = gpu.values("power_limit_w", -1, end_s)
    counted = count_energy(samples, start_s, end_s, max(limits, default=None))
    traced = integrate_power(samples, start_s, end_s, gpu.interval_s)
    chosen = traced if counted.joules is None else counted
    gaps = find_gaps(samples, start_s, end_s, gpu.interval_s)
    return GpuEnergy(
        uuid=gpu.uuid,
        joules=chosen.joules,
        source=None if chosen.joules is None else "trace" if chosen is traced else "counter",
        error_j=None if chosen.joules is None else chosen.error_j,
        why=counted.why if chosen.joules is None else "",
        counter_j=counted.joules,
        trace_j=traced.joules,
        disagreement=traced.joules / counted.joules - 1 if counted.joules and traced.joules is not None else None,
        gaps=Gaps(count=gaps.count, total_s=gaps.total_s, longest_s=gaps.longest_s),
    )


def _scraped(trace: Trace, uuid: str) -> list[Reading]:
    """Return the readings of a GPU that servekit's metrics report."""
    known: dict[str, float] = {}
    readings: list[Reading] = []
    for scrape in trace.scrapes:
        for sample, value in (scrape.changed or {}).items():
            name, labels = parse_name(sample)
            if name in _SCRAPED and labels.get("gpu") == uuid:
                known[_SCRAPED[name]] = float(value)
        for sample in scrape.gone:
            name, labels = parse_name(sample)
            if labels.get("gpu") == uuid:
                known.pop(_SCRAPED.get(name, ""), None)
        if scrape.changed is not None:
            readings.append({"t": scrape.t, **known})
    return readings
