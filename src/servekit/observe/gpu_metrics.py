"""The GPUs as metric families: energy, power, temperature, memory, slowdowns and errors, read at each scrape."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from servekit.nvml import NVML, SLOWDOWNS, GpuFacts, GpuReadings, Nvml
from servekit.observe.families import Kind, Values, family
from servekit.observe.gpu_errors import Xids


def gpu_families(gpus: Sequence[GpuFacts], xids: Mapping[str, Xids], nvml: Nvml = NVML) -> Iterator[Metric]:
    """Yield the readings of the GPUs that the engine may use; a family whose value NVML does not report is absent.

    servekit_gpu_energy_joules_total{gpu="GPU-1234",name="NVIDIA L4"} 81234.567   since the driver was loaded
    servekit_gpu_power_watts{...} 71.5                                              mean over about a second
    servekit_gpu_power_limit_watts{...} 72.0
    servekit_gpu_temperature_celsius{...} 64.0
    servekit_gpu_memory_used_bytes{...} 2.1e+10
    servekit_gpu_memory_total_bytes{...} 2.4e+10
    servekit_gpu_slowed_down{...,reason="hardware thermal slowdown"} 0.0
    servekit_gpu_xid_errors_total{...} 0.0                                          since servekit started
    servekit_gpu_last_xid{...} 79.0                                                 absent before the first
    servekit_gpu_ecc_errors_total{...,kind="uncorrected"} 0.0                       since the driver was loaded
    servekit_gpu_remapped_rows{...,cause="uncorrected"} 0.0
    servekit_gpu_remapping_pending{...} 0.0
    servekit_gpu_remapping_failed{...} 0.0
    """
    read = [(gpu, _values(nvml.read(gpu.uuid), xids.get(gpu.uuid))) for gpu in gpus]
    for name, (kind, text, labels) in _FAMILIES.items():
        samples = {
            (gpu.uuid, gpu.name, *label_values): value
            for gpu, values in read
            for label_values, value in values[name].items()
            if value is not None
        }
        if samples:
            yield family(kind, name, text, ("gpu", "name", *labels), samples)


def _values(readings: GpuReadings, xids: Xids | None) -> dict[str, Values]:
    """Return the values of every family for one GPU."""
    slowdowns, rows = readings.slowdowns, readings.remapped_rows or (None,) * 4
    return {
        "servekit_gpu_energy_joules": {(): readings.energy_j},
        "servekit_gpu_power_watts": {(): readings.power_w},
        "servekit_gpu_power_limit_watts": {(): readings.power_limit_w},
        "servekit_gpu_temperature_celsius": {(): readings.temperature_c},
        "servekit_gpu_memory_used_bytes": {(): readings.memory_used_bytes},
        "servekit_gpu_memory_total_bytes": {(): readings.memory_total_bytes},
        "servekit_gpu_slowed_down": {
            (reason,): None if slowdowns is None else reason in slowdowns for reason in SLOWDOWNS.values()
        },
        "servekit_gpu_xid_errors": {(): xids and xids[0]},
        "servekit_gpu_last_xid": {(): xids and xids[1]},
        "servekit_gpu_ecc_errors": {
            ("corrected",): readings.corrected_errors,
            ("uncorrected",): readings.uncorrected_errors,
        },
        "servekit_gpu_remapped_rows": {("corrected",): rows[0], ("uncorrected",): rows[1]},
        "servekit_gpu_remapping_pending": {(): rows[2]},
        "servekit_gpu_remapping_failed": {(): rows[3]},
    }


_FAMILIES: Final[Mapping[str, tuple[Kind, str, tuple[str, ...]]]] = {
    "servekit_gpu_energy_joules": (CounterMetricFamily, "Energy since the driver was loaded, in joules.", ()),
    "servekit_gpu_power_watts": (GaugeMetricFamily, "Power draw, the mean of about the last second, in watts.", ()),
    "servekit_gpu_power_limit_watts": (GaugeMetricFamily, "The enforced power limit, in watts.", ()),
    "servekit_gpu_temperature_celsius": (GaugeMetricFamily, "Temperature of the GPU, in degrees Celsius.", ()),
    "servekit_gpu_memory_used_bytes": (GaugeMetricFamily, "GPU memory in use by all processes.", ()),
    "servekit_gpu_memory_total_bytes": (GaugeMetricFamily, "GPU memory in total.", ()),
    "servekit_gpu_slowed_down": (GaugeMetricFamily, "1 while the GPU slows down for this reason.", ("reason",)),
    "servekit_gpu_xid_errors": (CounterMetricFamily, "Xid errors since servekit started.", ()),
    "servekit_gpu_last_xid": (GaugeMetricFamily, "The number of the last Xid error.", ()),
    "servekit_gpu_ecc_errors": (CounterMetricFamily, "ECC errors since the driver was loaded.", ("kind",)),
    "servekit_gpu_remapped_rows": (GaugeMetricFamily, "Memory rows replaced by spare rows.", ("cause",)),
    "servekit_gpu_remapping_pending": (GaugeMetricFamily, "1 while a row remapping waits for a GPU reset.", ()),
    "servekit_gpu_remapping_failed": (GaugeMetricFamily, "1 when no spare row was left: replace the GPU.", ()),
}
