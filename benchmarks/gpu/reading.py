"""GPU 0 as servekit's NVML reads it: memory in use and its processes. None on a host without a GPU."""

from servekit.nvml import NVML, GpuFacts

GIB = 1 << 30


def read_gpu() -> GpuFacts | None:
    """Read GPU 0; None if there is none."""
    survey = NVML.survey()
    return survey.gpus[0] if survey and survey.gpus else None


def used_bytes() -> int:
    """Return the bytes of GPU memory in use by any process; 0 if there is no GPU."""
    gpu = read_gpu()
    return gpu.memory_bytes - gpu.free_bytes if gpu else 0
