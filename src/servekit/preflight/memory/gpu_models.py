"""GPUs that servekit can plan for without having them: their memory and compute capability."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

GIB: Final = 1 << 30
MIB: Final = 1 << 20


def gib(size: float, digits: int = 1) -> str:
    """Return a size in bytes as text in GiB."""
    return f"{size / GIB:,.{digits}f} GiB"


@dataclass(frozen=True)
class GpuModel:
    """A GPU as the memory plan sees it.

    `memory_bytes` is what NVML (and nvidia-smi) reports; `usable_bytes` is what CUDA reports to a program, without
    what the driver and ECC keep. vLLM 0.20.2 takes `gpu-memory-utilization` of the latter (torch.cuda.mem_get_info,
    v1/worker/utils.py, request_memory). `capability` is None for a bare amount of memory.
    """

    name: str
    memory_bytes: int
    usable_bytes: int
    capability: tuple[int, int] | None = None


def _gpu(name: str, nvml_mib: int, usable_gib: float, capability: tuple[int, int]) -> GpuModel:
    return GpuModel(name, nvml_mib * MIB, round(usable_gib * GIB), capability)


# NVML totals are those nvidia-smi prints; usable totals those PyTorch prints in "GPU 0 has a total capacity of",
# both with ECC as the GPU is shipped; the latter varies by about 0.1 GiB with the driver.
GPU_MODELS: Final[Mapping[str, GpuModel]] = {
    "a10": _gpu("A10", 23_028, 21.99, (8, 6)),
    "a100-40": _gpu("A100 40GB", 40_960, 39.50, (8, 0)),
    "a100-80": _gpu("A100 80GB", 81_920, 79.25, (8, 0)),
    "rtx4090": _gpu("GeForce RTX 4090", 24_564, 23.52, (8, 9)),
    "l4": _gpu("L4", 23_034, 22.03, (8, 9)),
    "l40": _gpu("L40", 46_068, 44.40, (8, 9)),
    "l40s": _gpu("L40S", 46_068, 44.40, (8, 9)),
    "h100": _gpu("H100 80GB", 81_559, 79.18, (9, 0)),
    "h200": _gpu("H200 141GB", 143_771, 139.80, (9, 0)),
}

_AMOUNT: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>gib|gb|mib)", re.IGNORECASE)
_UNITS: Final[Mapping[str, int]] = {"gib": GIB, "gb": 1_000_000_000, "mib": MIB}


def parse_gpu_model(text: str) -> GpuModel:
    """Return the GPU meant by `l4`, `NVIDIA L4` or an amount of memory such as `24GiB`.

    An amount is what a program may use: the driver keeps nothing of it. Raises ValueError with the known names.
    """
    key = re.sub(r"^(nvidia|geforce|tesla)[ -]", "", text.strip().lower()).replace(" ", "").replace("_", "")
    if key in GPU_MODELS:
        return GPU_MODELS[key]
    amount = _AMOUNT.fullmatch(text.strip())
    if amount and (memory := int(float(amount["number"]) * _UNITS[amount["unit"].lower()])):
        return GpuModel(text.strip(), memory, memory)
    raise ValueError(f"no such GPU: {text!r}; take one of {', '.join(GPU_MODELS)}, or an amount such as 24GiB")
