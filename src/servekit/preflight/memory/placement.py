"""Where Gemma 4's table of per-layer embeddings goes: into the GPU's memory, or pinned into the host's.

A token reads one row of the table, 21.5 KB over PCIe; on the GPU it takes more than half of the weights' memory.
`servekit_guard/core/embeddings.py` places it, in the engine.
"""

from dataclasses import dataclass
from typing import Final

from servekit.preflight.findings import Finding, error, note, warning
from servekit.preflight.memory.gpu_models import GIB, GpuModel, gib
from servekit.profile import EngineArguments
from servekit.settings import Embeddings, Target

LARGE_GPU_BYTES: Final = 40 * GIB
"""From here on `auto` leaves the table on the GPU: the KV cache is large enough without its 5.25 GiB."""
TABLE_BYTES: Final = round(5.25 * GIB)
"""Of gemma-4-E4B in BF16: 262,144 words, 42 layers, 256 values each. No other Gemma 4 has a larger one."""
PROCESSES_BYTES: Final = 6 * GIB
"""What the engine's processes take of the host's memory beside the table: an estimate, with images in their cache."""
HOST_BYTES: Final = TABLE_BYTES + PROCESSES_BYTES
_REPLACING_FORMATS: Final = frozenset({"tensorizer"})
"""Loaders that put tensors of their own in the place of the model's (vLLM 0.20.2, model_loader/tensorizer_loader.py).
The others fill the tensors that are there."""


@dataclass(frozen=True)
class Placement:
    """The memory that the table goes into, and what there is to say about it."""

    memory: str = "gpu"
    """`gpu`, `host`, or `cpu` for the CPU engine."""
    required: bool = False
    """Whether the start fails where the host cannot pin it; otherwise the table then stays on the GPU."""
    findings: tuple[Finding, ...] = ()

    @property
    def wanted(self) -> str:
        """What the running engine may report."""
        return "host or gpu" if self.memory == "host" and not self.required else self.memory


def place_embeddings(
    setting: Embeddings,
    target: Target,
    gpu: GpuModel | None,
    arguments: EngineArguments,
    *,
    host: tuple[int, int] = (0, 0),
) -> Placement:
    """Decide where the table goes, for the engine's `arguments`.

    `host` is its memory in bytes, in all and not in use; 0: unknown, or another host is planned for.
    """
    total_bytes, available_bytes = host
    if target is Target.CPU:
        unused = note("memory-embeddings", "has no effect on the CPU engine", subject="--embeddings")
        return Placement("cpu", findings=() if setting is Embeddings.AUTO else (unused,))
    small = gpu is not None and gpu.usable_bytes < LARGE_GPU_BYTES
    if setting is Embeddings.GPU or (setting is Embeddings.AUTO and not small):
        return Placement()
    required = setting is Embeddings.HOST
    if arguments.load_format in _REPLACING_FORMATS:
        obstacle, remedy = f"load-format {arguments.load_format} puts its own tensors on the GPU", "use another format"
    elif 0 < available_bytes < HOST_BYTES:
        obstacle = f"{gib(available_bytes)} of host memory are available now"
        obstacle += f", and table and processes take {gib(HOST_BYTES)}"
        remedy = "free some, or give the container more (ENDPOINT_MEMORY)"
        if total_bytes >= HOST_BYTES:  # the plan of a start at this moment, not of an endpoint that runs
            remedy = f"of {gib(total_bytes)} in all: end what uses them, such as an endpoint that runs already"
    else:
        return Placement("host", required)
    if required:
        found = error("memory-embeddings", obstacle, subject="--embeddings", remedy=f"{remedy}, or set it to gpu")
        return Placement("gpu", findings=(found,))
    stay = f"the per-layer embeddings stay on the GPU, which makes the KV cache smaller: {obstacle}"
    return Placement("gpu", findings=(warning("memory-embeddings", stay, remedy=remedy),))
