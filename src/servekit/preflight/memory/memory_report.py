"""The memory plan as text, as JSON and as findings."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from servekit.preflight.findings import Finding, error, note, warning
from servekit.preflight.memory.gpu_models import GIB, MIB, gib
from servekit.preflight.memory.memory_plan import MemoryPlan
from servekit.preflight.memory.shortages import Shortages

OUTSIDE_BYTES: Final = round(1.5 * GIB)
"""What the engine's process held of the GPU beyond its budget, by NVML, on an H100 (benchmarks/gpu/results): the CUDA
context, and what PyTorch's allocator keeps of steps larger than the rehearsed ones."""

MORE_MEMORY: Final = "lower max-num-seqs, raise gpu-memory-utilization, or take a GPU with more memory"
LOWER_CACHE: Final = "lower kv-cache-memory-bytes or num-gpu-blocks-override, or leave them out"


def first_bottleneck(plan: MemoryPlan) -> str:
    """Return what runs out first under load of typical requests, in one sentence."""
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


def check_plan(plan: MemoryPlan) -> Iterator[Finding]:
    """Report what would keep vLLM from starting, and where memory will be short."""
    beside = plan.graphs_bytes + plan.sampler_bytes + plan.base_bytes
    wanted = plan.weights_bytes + beside + plan.available_bytes
    remedy = MORE_MEMORY if plan.budget_bytes else "raise VLLM_CPU_KVCACHE_SPACE"
    if plan.available_bytes <= 0:
        yield error(
            "memory-weights",
            f"weights of {gib(plan.weights_bytes, 2)} and {gib(beside, 2)} beside them do not fit the budget of "
            f"{gib(plan.budget_bytes, 2)}: {gib(-plan.available_bytes, 2)} are missing",
            subject=plan.device,
            remedy=remedy,
        )
    elif plan.budget_bytes and plan.explicit and wanted > plan.total_bytes:
        yield error(
            "memory-cache",
            f"the profile sets a KV cache of {gib(plan.available_bytes, 2)}; with weights of "
            f"{gib(plan.weights_bytes, 2)} and {gib(beside, 2)} beside them that is {gib(wanted, 2)} of "
            f"{gib(plan.total_bytes, 2)}",
            subject=plan.device,
            remedy=LOWER_CACHE,
        )
    elif not plan.fits_one:
        yield error(
            "memory-one-request",
            f"one request of max-model-len {plan.max_model_len:,} takes {gib(plan.request_bytes, 2)} of KV cache, "
            f"{gib(plan.blocks * plan.block_bytes, 2)} are left: vLLM would not start",
            subject=plan.device,
            remedy=f"set max-model-len to {plan.longest_request} or less, or {remedy}"
            if plan.longest_request
            else remedy,
        )
    else:
        report = warning if plan.full_requests < 2 else note  # noqa: PLR2004 - one long request would block all others
        yield report("memory-bottleneck", f"runs out first: {first_bottleneck(plan)}", subject=plan.device)
    taken = wanted if plan.explicit else plan.budget_bytes
    if plan.budget_bytes and plan.total_bytes - OUTSIDE_BYTES < taken <= plan.total_bytes:
        share = int((plan.total_bytes - OUTSIDE_BYTES) / plan.total_bytes * 100) / 100
        yield warning(
            "memory-headroom",
            f"of {gib(plan.total_bytes, 2)} the engine plans with {gib(taken, 2)}, and its process held up to "
            f"{gib(OUTSIDE_BYTES, 2)} beside that in a test: it may run out of memory under load",
            subject=plan.device,
            remedy=LOWER_CACHE if plan.explicit else f"set gpu-memory-utilization to {share} or less",
        )
    if plan.shortages and plan.shortages.penalised_tokens < plan.max_model_len and wanted <= plan.total_bytes:
        yield warning(
            "memory-penalties",
            f"requests with penalties are limited to prompts of {plan.shortages.penalised_tokens:,} tokens: the "
            f"{gib(plan.shortages.room_bytes, 2)} beside what vLLM plans with hold no longer ones in "
            f"{plan.shortages.rows:,} rows",
            subject=plan.device,
            remedy=f"to trade cache for them, {LOWER_CACHE if plan.explicit else 'lower gpu-memory-utilization'}",
        )


def render_plan(plan: MemoryPlan) -> str:
    """Return the plan as an aligned table."""
    return "\n".join(f"{label:<34}{value:>14}  {comment}".rstrip() for label, value, comment in _rows(plan))


def plan_as_dict(plan: MemoryPlan) -> dict[str, Any]:
    """Return the plan as JSON-able values."""
    return asdict(plan) | {
        "full_requests": round(plan.full_requests, 2),
        "first_bottleneck": first_bottleneck(plan),
    }


def _rows(plan: MemoryPlan) -> Iterator[tuple[str, str, str]]:
    yield "memory of the device", gib(plan.total_bytes, 2) if plan.total_bytes else "unknown", plan.device
    if plan.budget_bytes:
        yield "budget", gib(plan.budget_bytes, 2), "gpu-memory-utilization of it"
    yield "weights", gib(plan.weights_bytes, 2), ""
    if plan.pinned_bytes:
        yield "per-layer embeddings", gib(plan.pinned_bytes, 2), "pinned in the host's memory, not on the GPU"
    if plan.budget_bytes:
        yield "CUDA graphs", gib(plan.graphs_bytes, 2), "" if plan.graphs_bytes else "enforce-eager"
        yield "sampler", gib(plan.sampler_bytes, 2), f"what max-num-seqs {plan.max_num_seqs:,} costs"
        yield "context and activations", gib(plan.base_bytes, 2), ""
    if plan.shortages:
        yield from _shortage_rows(plan.shortages)
    source = "set in the profile" if plan.budget_bytes else "VLLM_CPU_KVCACHE_SPACE"
    yield "left for the KV cache", gib(plan.available_bytes, 2), source if plan.explicit else ""
    yield (
        "KV cache of one request",
        f"{plan.request_bytes / MIB:,.1f} MiB",
        f"{plan.max_model_len:,} tokens, {plan.blocks_per_request:,} blocks; {plan.cache_layers} layers own a cache",
    )
    yield "pool", f"{plan.pool_tokens:,}", f"tokens, in {plan.blocks:,} blocks of {plan.block_bytes / 1024:,.0f} KiB"
    yield f"requests of {plan.max_model_len:,} tokens", f"{plan.full_requests:,.2f}", "at once"
    yield f"requests of {plan.typical_tokens:,} tokens", f"{plan.typical_requests:,}", "at once, generating"
    yield "first bottleneck", "", first_bottleneck(plan)


def _shortage_rows(shortages: Shortages) -> Iterator[tuple[str, str, str]]:
    yield "beside all that", gib(shortages.room_bytes, 2), "free for what the start does not rehearse"
    for demand in filter(lambda each: each.takes_bytes, shortages.demands):
        parts = (
            (demand.fixed_bytes, f"{demand.fixed_bytes / MIB:,.0f} MiB whatever the batch"),
            (demand.row_bytes, f"{demand.row_bytes / 1024:,.0f} KiB for each row"),
            (demand.token_bytes, f"{demand.token_bytes} bytes for each row and token"),
        )
        where = f"{gib(demand.beyond_bytes, 2)} of it here" if demand.beyond_bytes else "all within the sampler's"
        yield f"  {demand.name}", gib(demand.takes_bytes, 2), f"{' and '.join(t for b, t in parts if b)}; {where}"
