"""The memory plan for a person, for a program, and as findings."""

from collections.abc import Iterator
from typing import Any, Final

from servekit.preflight.findings import Finding, error, note, warning
from servekit.preflight.memory.gpu_models import GIB, MIB, GpuModel
from servekit.preflight.memory.memory_plan import MemoryPlan

FP8_CAPABILITY: Final = (8, 9)
OUTSIDE_BYTES: Final = round(1.5 * GIB)
"""What the engine's process held of the GPU beyond its budget, by NVML, on an H100 (benchmarks/gpu/results): the CUDA
context, and what PyTorch's allocator keeps of steps larger than the rehearsed ones."""


def first_bottleneck(plan: MemoryPlan) -> str:
    """Say what runs out first under load of typical requests, in one sentence."""
    if not plan.fits_one:
        return f"the memory: not even one request of {plan.max_model_len:,} tokens fits"
    typical = f"requests of {plan.typical_tokens:,} tokens"
    if plan.typical_requests < plan.max_num_seqs:
        return (
            f"the KV cache: full with {plan.typical_requests:,} {typical}, before max-num-seqs {plan.max_num_seqs:,} is"
            " reached; more wait in the queue"
        )
    return (
        f"max-num-seqs: {plan.max_num_seqs:,} requests run at once while the KV cache would hold "
        f"{plan.typical_requests:,} {typical}"
    )


def check_plan(plan: MemoryPlan, card: GpuModel | None = None, kv_cache_dtype: str = "auto") -> Iterator[Finding]:
    """Judge the plan: what would keep vLLM from starting, and where it will be narrow."""
    fp8 = kv_cache_dtype.startswith("fp8")
    if fp8 and card and card.capability and card.capability < FP8_CAPABILITY:
        yield error(
            "gpu-capability",
            f"compute capability {card.capability[0]}.{card.capability[1]}: an FP8 KV cache needs 8.9",
            subject=card.name,
            remedy="take an L4, L40S, H100 or newer",
        )
    if plan.budget_bytes and plan.available_bytes <= 0:
        yield error(
            "memory-weights",
            f"weights of {_gib(plan.weights_bytes)} and {_gib(_beside(plan))} beside them do not fit the budget of "
            f"{_gib(plan.budget_bytes)}: {_gib(-plan.available_bytes)} are missing",
            subject=plan.device,
            remedy=_remedy(plan),
        )
    elif not plan.fits_one:
        yield error(
            "memory-one-request",
            f"one request of max-model-len {plan.max_model_len:,} takes {_gib(plan.request_bytes)} of KV cache, "
            f"{_gib(plan.blocks * plan.layout.block_bytes)} are left: vLLM would not start",
            subject=plan.device,
            remedy=f"set max-model-len to {plan.longest_request} or less, or {_remedy(plan)}"
            if plan.longest_request
            else _remedy(plan),
        )
    else:
        say = warning if plan.full_requests < 2 else note  # noqa: PLR2004 - one long request would block all others
        yield say("memory-bottleneck", f"runs out first: {first_bottleneck(plan)}", subject=plan.device)
    if plan.budget_bytes and plan.budget_bytes + OUTSIDE_BYTES > plan.total_bytes:
        share = int((plan.total_bytes - OUTSIDE_BYTES) / plan.total_bytes * 100) / 100
        yield warning(
            "memory-headroom",
            f"of {_gib(plan.total_bytes)} the budget takes {_gib(plan.budget_bytes)}, the engine's process was seen to "
            f"hold {_gib(OUTSIDE_BYTES)} beside it: it may run out of memory under load",
            subject=plan.device,
            remedy=f"set gpu-memory-utilization to {share} or less",
        )


def render_plan(plan: MemoryPlan) -> str:
    """Write the plan as an aligned table."""
    return "\n".join(f"{label:<34}{value:>14}  {comment}".rstrip() for label, value, comment in _rows(plan))


def plan_as_dict(plan: MemoryPlan) -> dict[str, Any]:
    """Give the plan as JSON-able values."""
    return {
        "device": plan.device,
        "total_bytes": plan.total_bytes,
        "budget_bytes": plan.budget_bytes,
        "weights_bytes": plan.weights_bytes,
        "graphs_bytes": plan.graphs_bytes,
        "sampler_bytes": plan.sampler_bytes,
        "base_bytes": plan.base_bytes,
        "available_bytes": plan.available_bytes,
        "blocks": plan.blocks,
        "block_bytes": plan.layout.block_bytes,
        "blocks_per_request": plan.blocks_per_request,
        "request_bytes": plan.request_bytes,
        "pool_tokens": plan.pool_tokens,
        "max_model_len": plan.max_model_len,
        "full_requests": round(plan.full_requests, 2),
        "typical_tokens": plan.typical_tokens,
        "typical_requests": plan.typical_requests,
        "max_num_seqs": plan.max_num_seqs,
        "fits_one": plan.fits_one,
        "longest_request": plan.longest_request,
        "first_bottleneck": first_bottleneck(plan),
    }


def _rows(plan: MemoryPlan) -> Iterator[tuple[str, str, str]]:
    yield "memory of the device", _gib(plan.total_bytes) if plan.total_bytes else "unknown", plan.device
    if plan.budget_bytes:
        yield "budget", _gib(plan.budget_bytes), "gpu-memory-utilization of it"
    yield "weights", _gib(plan.weights_bytes), ""
    if plan.budget_bytes:
        yield "CUDA graphs", _gib(plan.graphs_bytes), "" if plan.graphs_bytes else "enforce-eager"
        yield "sampler", _gib(plan.sampler_bytes), f"what max-num-seqs {plan.max_num_seqs:,} costs"
        yield "context and activations", _gib(plan.base_bytes), ""
    yield (
        "left for the KV cache",
        _gib(plan.available_bytes),
        "" if plan.budget_bytes else "VLLM_CPU_KVCACHE_SPACE",
    )
    group = plan.layout
    yield (
        "KV cache of one request",
        f"{plan.request_bytes / MIB:,.1f} MiB",
        f"{plan.max_model_len:,} tokens, {plan.blocks_per_request:,} blocks; {group.owners} layers own a cache",
    )
    yield "pool", f"{plan.pool_tokens:,}", f"tokens, in {plan.blocks:,} blocks of {group.block_bytes / 1024:,.0f} KiB"
    yield f"requests of {plan.max_model_len:,} tokens", f"{plan.full_requests:,.2f}", "at once"
    yield f"requests of {plan.typical_tokens:,} tokens", f"{plan.typical_requests:,}", "at once, generating"
    yield "first bottleneck", "", first_bottleneck(plan)


def _beside(plan: MemoryPlan) -> int:
    return plan.graphs_bytes + plan.sampler_bytes + plan.base_bytes


def _remedy(plan: MemoryPlan) -> str:
    if not plan.budget_bytes:
        return "raise VLLM_CPU_KVCACHE_SPACE"
    return "lower max-num-seqs, raise gpu-memory-utilization, or take a GPU with more memory"


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f} GiB"
