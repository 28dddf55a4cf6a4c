"""What the GPU itself says: memory in use, who uses it, energy spent. None on a host without NVML."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class CardReading:
    """One reading of GPU 0: bytes in use, and bytes by process id."""

    name: str
    total_bytes: int
    used_bytes: int
    process_bytes: dict[int, int]


def read_card() -> CardReading | None:
    """Read GPU 0 through NVML; None where there is none."""
    if _gpu() is None:
        return None
    nvml, handle = _gpu()
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return CardReading(
        name=str(nvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        process_bytes={
            int(process.pid): int(process.usedGpuMemory or 0)
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        },
    )


def read_energy() -> tuple[float, float] | None:
    """Return the joules that GPU 0 has spent since the driver was loaded, and its watts; None without a GPU."""
    if _gpu() is None:
        return None
    nvml, handle = _gpu()
    return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000, nvml.nvmlDeviceGetPowerUsage(handle) / 1000


def used_bytes() -> int:
    """Bytes of GPU memory in use by anybody; 0 where there is no GPU."""
    reading = read_card()
    return reading.used_bytes if reading else 0


@functools.cache
def _gpu() -> Any:
    """Return NVML and its handle of GPU 0; None where there is none."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return nvml, nvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # noqa: BLE001 - no library, no driver: whatever the reason, there is nothing to read
        return None
