"""What the GPU itself says: memory in use, who uses it, energy spent. None on a host without NVML."""

import importlib
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class CardReading:
    """One reading of GPU 0: bytes in use, bytes by process id, millijoules since the driver was loaded."""

    name: str
    total_bytes: int
    used_bytes: int
    process_bytes: dict[int, int]
    energy_mj: int
    power_w: float


def read_card() -> CardReading | None:
    """Read GPU 0 through NVML; None where there is none."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no library, no driver: whatever the reason, there is nothing to read
        return None
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return CardReading(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        process_bytes={
            int(process.pid): int(process.usedGpuMemory or 0)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        },
        energy_mj=int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
        power_w=pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    )


def used_bytes() -> int:
    """Bytes of GPU memory in use by anybody; 0 where there is no GPU."""
    reading = read_card()
    return reading.used_bytes if reading else 0
