"""The memory plan of a checkpoint on a device, with every reason it cannot be made as a finding."""

from collections.abc import Mapping
from typing import Any

from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts
from servekit.preflight.findings import Finding, error, warning
from servekit.preflight.memory.gpu_models import GpuModel
from servekit.preflight.memory.kv_layout import LayoutError
from servekit.preflight.memory.memory_plan import (
    MEASURED,
    TYPICAL_TOKENS,
    MemoryPlan,
    Overheads,
    UnplannedError,
    batched_tokens,
    plan_cpu_memory,
    plan_memory,
)
from servekit.preflight.memory.memory_report import check_plan


def plan_capacity(
    facts: CheckpointFacts,
    arguments: Mapping[str, Any],
    card: GpuModel | None,
    *,
    kv_space_gib: int = 1,
    memory_bytes: int = 0,
    overheads: Overheads = MEASURED,
    typical_tokens: int = TYPICAL_TOKENS,
) -> tuple[MemoryPlan | None, tuple[Finding, ...]]:
    """Plan the memory for `card`, or for the CPU engine when `card` is None; None with the reason when it cannot be.

    `arguments` are the profile's engine arguments under their dashed names; `kv_space_gib` is VLLM_CPU_KVCACHE_SPACE
    and `memory_bytes` the host's memory.
    """
    weights = facts.weights(arguments, batched_tokens(arguments, card))
    if facts.text is None or weights is None:
        return None, (warning("memory-unplanned", f"{facts.config.architecture} is no Gemma 4"),)
    dtype = facts.model_dtype(arguments)
    if (facts.config.quantization or {}).get("kv_cache_scheme"):
        # vLLM 0.20.2 then uses an FP8 cache whatever the profile says (layers/attention/attention.py)
        arguments = {**arguments, "kv-cache-dtype": "fp8"}
    try:
        if card is None:
            plan = plan_cpu_memory(
                facts.text,
                weights.total_bytes,
                arguments,
                kv_space_gib=kv_space_gib,
                total_bytes=memory_bytes,
                model_dtype=dtype,
                typical_tokens=typical_tokens,
            )
        else:
            plan = plan_memory(
                facts.text,
                weights.total_bytes,
                arguments,
                card,
                model_dtype=dtype,
                overheads=overheads,
                typical_tokens=typical_tokens,
            )
    except UnplannedError as problem:
        return None, (warning("memory-unplanned", str(problem)),)
    except LayoutError as problem:
        return None, (error("memory-layout", str(problem), remedy="take a model whose head sizes divide each other"),)
    return plan, tuple(check_plan(plan, card, str(arguments.get("kv-cache-dtype") or "auto")))
