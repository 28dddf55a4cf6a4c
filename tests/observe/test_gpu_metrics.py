"""The GPU's figures: what NVML tells, in base units, and nothing it does not tell."""

from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from servekit.observe.gpu_metrics import GpuCollector
from servekit.preflight.host.gpus import GpuFacts, GpuSurvey

GPU = GpuFacts(0, "GPU-1234", "NVIDIA L4", 24_152_899_584, 24_000_000_000, (8, 9))
SURVEY = GpuSurvey("580.95", (13, 0), (GPU,))


class Nvml:
    """NVML with one L4; functions named in `silent` are not supported by it."""

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self, *silent: str) -> None:
        self.silent = silent

    def __getattr__(self, name: str) -> Any:
        """Answer as an L4 under load would."""
        answers = {
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetTotalEnergyConsumption": 81_234_567,
            "nvmlDeviceGetPowerUsage": 71_500,
            "nvmlDeviceGetEnforcedPowerLimit": 72_000,
            "nvmlDeviceGetTemperature": 64,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=21_000_000_000, total=24_152_899_584),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x44,
        }

        def call(*_: object) -> object:
            if name in self.silent:
                raise self.NVMLError(name)
            return answers[name]

        return call


def page(collector: GpuCollector) -> list[str]:
    """Return the samples Prometheus would read, without their labels' GPU."""
    registry = CollectorRegistry()
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return [line.replace('gpu="GPU-1234",name="NVIDIA L4"', "") for line in lines if not line.startswith("#")]


def test_every_figure_in_base_units() -> None:
    """Millijoules become joules and milliwatts watts; a power cap is no slowdown, a thermal one is."""
    assert page(GpuCollector(survey=lambda: SURVEY, nvml=Nvml(), environ={})) == [
        "servekit_gpu_energy_joules_total{} 81234.567",
        "servekit_gpu_power_watts{} 71.5",
        "servekit_gpu_power_limit_watts{} 72.0",
        "servekit_gpu_temperature_celsius{} 64.0",
        "servekit_gpu_memory_used_bytes{} 2.1e+10",
        "servekit_gpu_memory_total_bytes{} 2.4152899584e+10",
        'servekit_gpu_slowed_down{,reason="hardware slowdown"} 0.0',
        'servekit_gpu_slowed_down{,reason="software thermal slowdown"} 0.0',
        'servekit_gpu_slowed_down{,reason="hardware thermal slowdown"} 1.0',
        'servekit_gpu_slowed_down{,reason="hardware power brake"} 0.0',
    ]


def test_what_is_not_told_is_absent() -> None:
    """A figure this GPU does not give is no series, never a zero."""
    silent = (
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
    )
    names = [
        line.partition("{")[0] for line in page(GpuCollector(survey=lambda: SURVEY, nvml=Nvml(*silent), environ={}))
    ]
    assert names == [
        "servekit_gpu_power_watts",
        "servekit_gpu_power_limit_watts",
        "servekit_gpu_memory_used_bytes",
        "servekit_gpu_memory_total_bytes",
    ]


def test_a_lost_gpu_takes_nothing_else_away() -> None:
    """A GPU that has fallen off the bus has no figures, and the scrape goes on."""
    assert page(GpuCollector(survey=lambda: SURVEY, nvml=Nvml("nvmlDeviceGetHandleByUUID"), environ={})) == []


def test_nothing_without_nvml() -> None:
    """Without a driver there are no GPU families, and none is estimated."""
    assert page(GpuCollector(survey=lambda: None)) == []


def test_only_the_visible_gpu() -> None:
    """A GPU hidden from the engine is not exported."""
    assert page(GpuCollector(survey=lambda: SURVEY, nvml=Nvml(), environ={"CUDA_VISIBLE_DEVICES": ""})) == []
