"""The memory plan of a checkpoint on a device; where there can be none, the reason as a finding."""

from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts
from servekit.preflight.checkpoint.contents.weight_sizes import WeightSizes
from servekit.preflight.findings import Finding, error, warning
from servekit.preflight.memory.gpu_models import GIB, GpuModel
from servekit.preflight.memory.kv_layout import LayoutError
from servekit.preflight.memory.memory_plan import MemoryPlan, UnplannedError, plan_memory
from servekit.preflight.memory.memory_report import check_plan
from servekit.profile import EngineArguments


def plan_capacity(
    facts: CheckpointFacts,
    arguments: EngineArguments,
    gpu: GpuModel | None,
    *,
    kv_space_gib: int = 1,
    host_bytes: int = 0,
    drafter_bytes: int = 0,
    embeddings_on_host: bool = False,
    flashinfer: bool = False,
) -> tuple[MemoryPlan | None, tuple[Finding, ...]]:
    """Plan the memory for `gpu`, or for the CPU engine when it is None; None with the reason where it cannot.

    `kv_space_gib` is VLLM_CPU_KVCACHE_SPACE, `host_bytes` the host's memory and `drafter_bytes` the size of the
    weights of speculative-config's model. `flashinfer`: its kernels draw tokens.
    """
    weights = facts.weights(arguments)
    if facts.config.text is None or weights is None:
        return None, (warning("memory-unplanned", f"{facts.config.architecture} is not a Gemma 4 model"),)
    try:
        offloaded = _offloaded(arguments, weights) if gpu else 0
        pinned = weights.per_layer_bytes if gpu and embeddings_on_host else 0
        plan = plan_memory(
            facts.config.text,
            weights.total_bytes - offloaded - pinned + drafter_bytes,
            arguments,
            gpu,
            kv_cache_dtype=facts.kv_cache_dtype(arguments),
            model_dtype=facts.model_dtype(arguments),
            kv_space_gib=kv_space_gib,
            host_bytes=host_bytes,
            pinned_bytes=pinned,
            flashinfer=flashinfer,
        )
    except UnplannedError as problem:
        return None, (warning("memory-unplanned", str(problem)),)
    except LayoutError as problem:
        return None, (error("memory-layout", str(problem), remedy="take a model whose head sizes divide each other"),)
    return plan, tuple(check_plan(plan))


def _offloaded(arguments: EngineArguments, weights: WeightSizes) -> int:
    """Return the bytes of weights that stay in the host's memory: of decoder layers only (model_executor/offloader).

    Raises UnplannedError where the profile chooses which of them.
    """
    backend, group = arguments.offload_backend, arguments.offload_group_size
    if backend == "prefetch" or (backend == "auto" and group):
        raise UnplannedError("offload-group-size keeps layers in the host's memory that the plan cannot count")
    if arguments.cpu_offload_gb and arguments.cpu_offload_params:
        raise UnplannedError("cpu-offload-params keeps weights in the host's memory that the plan cannot count")
    return min(int(arguments.cpu_offload_gb * GIB), weights.layers_bytes)
