"""The GPU's metric families: what NVML reports, in base units, and nothing else."""

from collections.abc import Callable, Iterable

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric

from servekit.nvml import GpuFacts, Nvml
from servekit.observe.gpu_errors import GpuErrors
from servekit.observe.gpu_metrics import gpu_families
from servekit.observe.metrics import make_registry
from tests.fake_nvml import GPU, XID, FakeNvml, pynvml

L4 = GpuFacts(0, GPU, "NVIDIA L4", 24_152_899_584, 24_000_000_000, (8, 9))


Read = Callable[[], Iterable[Metric]]


def page(read: Read) -> list[str]:
    """Return the samples that Prometheus would read, without the GPU's labels."""
    lines = generate_latest(make_registry(read)).decode().splitlines()
    labels = (f'gpu="{GPU}",', 'name="NVIDIA L4"')
    return [line.replace(labels[0], "").replace(labels[1], "") for line in lines if line.startswith("servekit_gpu")]


def reader(library: FakeNvml) -> Read:
    """Return a function that reads the families of one L4, as `servekit serve` does."""
    nvml = Nvml(library)
    errors = GpuErrors([GPU], nvml)
    return lambda: gpu_families([L4], errors.xids(), nvml)


def test_every_value_in_base_units() -> None:
    """Millijoules become joules and milliwatts watts; a power cap is not a slowdown; there is no last Xid at first."""
    assert page(reader(FakeNvml())) == [
        "servekit_gpu_energy_joules_total{} 81234.567",
        "servekit_gpu_power_watts{} 71.5",
        "servekit_gpu_power_limit_watts{} 72.0",
        "servekit_gpu_temperature_celsius{} 64.0",
        "servekit_gpu_memory_used_bytes{} 5.59939584e+08",
        "servekit_gpu_memory_total_bytes{} 2.4152899584e+10",
        'servekit_gpu_slowed_down{,reason="hardware slowdown"} 0.0',
        'servekit_gpu_slowed_down{,reason="software thermal slowdown"} 0.0',
        'servekit_gpu_slowed_down{,reason="hardware thermal slowdown"} 1.0',
        'servekit_gpu_slowed_down{,reason="hardware power brake"} 0.0',
        "servekit_gpu_xid_errors_total{} 0.0",
        'servekit_gpu_ecc_errors_total{kind="corrected",} 5.0',
        'servekit_gpu_ecc_errors_total{kind="uncorrected",} 5.0',
        'servekit_gpu_remapped_rows{cause="corrected",} 1.0',
        'servekit_gpu_remapped_rows{cause="uncorrected",} 2.0',
        "servekit_gpu_remapping_pending{} 1.0",
        "servekit_gpu_remapping_failed{} 0.0",
    ]


def test_an_xid_is_a_count_and_a_number(eventually: Callable[..., None]) -> None:
    """An Xid increments the counter, and its number becomes the last one."""
    library = FakeNvml()
    errors = GpuErrors([GPU], Nvml(library))
    errors.start()
    library.happen(XID, 48)
    eventually(lambda: errors.xids() == {GPU: (1, 48)}, what="the Xid")
    lines = page(lambda: gpu_families([L4], errors.xids(), Nvml(library)))
    assert {"servekit_gpu_xid_errors_total{} 1.0", "servekit_gpu_last_xid{} 48.0"} <= set(lines)


def test_what_nvml_does_not_report_is_absent() -> None:
    """A value that this GPU does not have gives no series, never a zero."""
    silent = (
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
    )
    errors = ("nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetSupportedEventTypes")
    names = [line.partition("{")[0] for line in page(reader(FakeNvml(*silent, *errors)))]
    assert names == [
        "servekit_gpu_power_watts",
        "servekit_gpu_power_limit_watts",
        "servekit_gpu_memory_used_bytes",
        "servekit_gpu_memory_total_bytes",
    ]


def test_a_lost_gpu_takes_nothing_else_away() -> None:
    """A lost GPU has no values, but its Xids stay and the scrape still works."""
    library = FakeNvml()
    read = reader(library)
    library.failures["nvmlDeviceGetHandleByUUID"] = pynvml.NVML_ERROR_GPU_IS_LOST
    assert page(read) == ["servekit_gpu_xid_errors_total{} 0.0"]


def test_nothing_without_a_gpu() -> None:
    """Without a visible GPU there are no families and no estimates."""
    library = FakeNvml()
    assert page(lambda: gpu_families([], GpuErrors([], Nvml(library)).xids(), Nvml(library))) == []
    assert library.calls == []
