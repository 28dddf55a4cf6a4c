"""GPU 0 as servekit's NVML reads it: memory in use, its processes, energy. None on a host without a GPU."""

import functools

from servekit.nvml import NVML, GpuFacts

GIB = 1 << 30


def read_gpu() -> GpuFacts | None:
    """Read GPU 0; None if there is none."""
    survey = NVML.survey()
    return survey.gpus[0] if survey and survey.gpus else None


def read_energy() -> tuple[float, float] | None:
    """Return the joules that GPU 0 has used since the driver was loaded, and its watts; None if it reports none."""
    uuid = _uuid()
    readings = NVML.read(uuid) if uuid else None
    if readings is None or readings.energy_j is None or readings.power_w is None:
        return None
    return readings.energy_j, readings.power_w


def used_bytes() -> int:
    """Return the bytes of GPU memory in use by any process; 0 if there is no GPU."""
    gpu = read_gpu()
    return gpu.memory_bytes - gpu.free_bytes if gpu else 0


@functools.cache
def _uuid() -> str | None:
    gpu = read_gpu()
    return gpu.uuid if gpu else None
