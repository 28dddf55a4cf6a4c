"""The GPU as NVML tells it at each scrape: energy as a counter, power, temperature, memory, slowdowns."""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from servekit.preflight.host.gpus import SLOWDOWNS, SurveyGpus, survey_gpus, visible_gpus

_LABELS: Final = ("gpu", "name")
_TEMPERATURE_GPU: Final = 0
"""NVML_TEMPERATURE_GPU (nvml.h)."""


class GpuCollector(Collector):
    """The GPUs the engine may see; nothing at all without NVML, and no family whose value NVML does not tell.

    servekit_gpu_energy_joules_total{gpu="GPU-1234",name="NVIDIA L4"} 81234.567   since the driver was loaded
    servekit_gpu_power_watts{...} 71.5                                              mean over about a second
    servekit_gpu_power_limit_watts{...} 72.0
    servekit_gpu_temperature_celsius{...} 64.0
    servekit_gpu_memory_used_bytes{...} 2.1e+10
    servekit_gpu_memory_total_bytes{...} 2.4e+10
    servekit_gpu_slowed_down{...,reason="hardware thermal slowdown"} 0.0
    """

    def __init__(
        self, *, survey: SurveyGpus = survey_gpus, nvml: Any = None, environ: Mapping[str, str] = os.environ
    ) -> None:
        found = survey()
        self._gpus = visible_gpus(found, environ) if found else ()
        self._nvml = nvml
        if self._gpus and nvml is None:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()  # once: a scrape must not wait for it

    def collect(self) -> Iterator[Metric]:
        """Yield what NVML tells at this moment."""
        if not self._gpus:
            return
        energy = CounterMetricFamily(
            "servekit_gpu_energy_joules", "Energy since the driver was loaded, in joules.", labels=_LABELS
        )
        gauges = {name: GaugeMetricFamily(name, text, labels=_LABELS) for name, text in _GAUGES.items()}
        slowed = GaugeMetricFamily(
            "servekit_gpu_slowed_down",
            "1 while the GPU slows itself down for this reason.",
            labels=(*_LABELS, "reason"),
        )
        for gpu in self._gpus:
            labels = (gpu.uuid, gpu.name)
            handle = self._ask("nvmlDeviceGetHandleByUUID", gpu.uuid)
            if handle is None:
                continue
            joules = self._ask("nvmlDeviceGetTotalEnergyConsumption", handle, read=_thousandth)
            if joules is not None:
                energy.add_metric(labels, joules)
            for name, value in self._readings(handle).items():
                if value is not None:
                    gauges[name].add_metric(labels, value)
            reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
            for bit, reason in SLOWDOWNS.items() if reasons is not None else ():
                slowed.add_metric((*labels, reason), float(bool(reasons & bit)))
        yield from (family for family in (energy, *gauges.values(), slowed) if family.samples)

    def _readings(self, handle: Any) -> dict[str, float | None]:
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        return {
            "servekit_gpu_power_watts": self._ask("nvmlDeviceGetPowerUsage", handle, read=_thousandth),
            "servekit_gpu_power_limit_watts": self._ask("nvmlDeviceGetEnforcedPowerLimit", handle, read=_thousandth),
            "servekit_gpu_temperature_celsius": self._ask("nvmlDeviceGetTemperature", handle, _TEMPERATURE_GPU),
            "servekit_gpu_memory_used_bytes": memory and memory.used,
            "servekit_gpu_memory_total_bytes": memory and memory.total,
        }

    def _ask(self, function: str, *arguments: Any, read: Callable[[Any], Any] = lambda answer: answer) -> Any:
        """Return what NVML answers, as `read` takes it; None where this GPU or this driver does not tell."""
        try:
            return read(getattr(self._nvml, function)(*arguments))
        except self._nvml.NVMLError:
            return None


def _thousandth(value: float) -> float:
    return value / 1000


_GAUGES: Final[Mapping[str, str]] = {
    "servekit_gpu_power_watts": "Power draw, the mean of about the last second, in watts.",
    "servekit_gpu_power_limit_watts": "The power limit in force, in watts.",
    "servekit_gpu_temperature_celsius": "Temperature of the GPU, in degrees Celsius.",
    "servekit_gpu_memory_used_bytes": "Memory in use on the card, by whomever.",
    "servekit_gpu_memory_total_bytes": "Memory of the card.",
}
