"""The memory plan: what the weights leave for the KV cache, how many requests that holds, and what runs out first.

Pure arithmetic over values; nothing here looks at a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from servekit.preflight.checkpoint.config_file import DTYPE_BYTES
from servekit.preflight.checkpoint.text_config import TextConfig
from servekit.preflight.memory.gpu_models import GIB, GpuModel
from servekit.preflight.memory.kv_layout import kv_layout
from servekit.preflight.memory.shortages import CONTEXT_BYTES, SAMPLED_BYTES, Shortages, plan_shortages
from servekit.profile import EngineArguments

TYPICAL_TOKENS: Final = 1_000
"""A typical request, prompt and answer together."""

_KV_BYTES: Final[Mapping[str, int]] = {
    "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "bfloat16": 2, "float16": 2, "float32": 4,
}  # fmt: skip


# What vLLM 0.20.2 takes on CUDA beside weights and KV cache. Measured with gemma-4-E4B on two H100 hosts, max-num-seqs
# 1024, max-num-batched-tokens 4096, torch.compile: of 20.08 GiB 6.36 were left for W4A16 with FP8 KV and 0.94 for BF16,
# of 20.20 GiB 6.48 and 1.06.
GRAPHS_BYTES: Final = round(0.54 * GIB)
"""CUDA graphs; none with `enforce-eager`."""
BASE_BYTES: Final = round(0.52 * GIB)
"""CUDA context, libraries, and activations of one step: what the sampler leaves of the 4.5 GiB measured beside weights
and KV cache."""


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory goes; sizes in bytes, requests as vLLM counts them.

    On the CPU the pool is set directly: budget, graphs, sampler and base are 0.
    """

    device: str
    total_bytes: int
    budget_bytes: int
    weights_bytes: int
    """On the device, without what is kept in the host's memory by `cpu-offload-gb` or as `pinned_bytes`."""
    pinned_bytes: int
    """Per-layer embeddings in the host's memory, pinned."""
    graphs_bytes: int
    sampler_bytes: int
    base_bytes: int
    available_bytes: int
    """What the KV cache takes: what is left of the budget, or what is set."""
    explicit: bool
    """Whether the size of the KV cache is set: vLLM then takes it without a look at the budget."""
    blocks: int
    block_bytes: int
    cache_layers: int
    """Layers that own a cache."""
    max_model_len: int
    max_num_seqs: int
    blocks_per_request: int
    """Blocks that vLLM accounts for one request of `max_model_len`."""
    request_bytes: int
    """Bytes of KV cache for one request of `max_model_len`."""
    full_requests: float
    """Requests of `max_model_len` at once: what vLLM logs as maximum concurrency."""
    pool_tokens: int
    """What vLLM logs as the size of the KV cache in tokens."""
    typical_tokens: int
    typical_requests: int
    """Requests of `typical_tokens` at once while they generate."""
    fits_one: bool
    """Whether one request of `max_model_len` fits: vLLM does not start otherwise."""
    longest_request: int
    """The longest request that the pool holds, in tokens up to `max_model_len`."""
    shortages: Shortages | None
    """What requests take beside the rehearsed batch; None on the CPU, where no start rehearses memory."""


class UnplannedError(ValueError):
    """The profile has a value that the plan does not know."""


def plan_memory(
    text: TextConfig,
    weights_bytes: int,
    arguments: EngineArguments,
    gpu: GpuModel | None,
    *,
    kv_cache_dtype: str = "auto",
    model_dtype: str = "bfloat16",
    kv_space_gib: int = 0,
    host_bytes: int = 0,
    pinned_bytes: int = 0,
    flashinfer: bool = False,
) -> MemoryPlan:
    """Plan for a GPU, or for the CPU engine where it is None.

    `kv_cache_dtype` is what the cache really holds, see CheckpointFacts.kv_cache_dtype. The CPU engine's pool is
    `kv_space_gib` (VLLM_CPU_KVCACHE_SPACE), in the model's own type, whatever else is used of `host_bytes`. Raises
    UnplannedError for a KV cache dtype without known size, and LayoutError where vLLM has no layout.
    """
    sequences, batched = arguments.max_num_seqs, arguments.max_num_batched_tokens
    layout = kv_layout(
        text,
        block_tokens=arguments.block_size,
        element_bytes=kv_element_bytes(kv_cache_dtype if gpu else "auto", model_dtype),
        hybrid=not arguments.disable_hybrid_kv_cache_manager,
    )
    budget = graphs = rows = sampler = base = 0
    pool = kv_space_gib * GIB
    if gpu:
        budget = int(gpu.usable_bytes * arguments.gpu_memory_utilization)
        graphs = 0 if arguments.enforce_eager else GRAPHS_BYTES
        # v1/worker/gpu_model_runner.py, _dummy_run: no more requests than tokens in a step
        rows = min(sequences, batched)
        sampler = rows * text.vocab_size * SAMPLED_BYTES
        base = BASE_BYTES
        pool = arguments.kv_cache_memory_bytes or 0
    if arguments.num_gpu_blocks_override:  # wins: v1/core/kv_cache_utils.py, get_kv_cache_configs
        pool = arguments.num_gpu_blocks_override * layout.block_bytes
    available = pool or budget - weights_bytes - graphs - sampler - base
    blocks = max(available, 0) // layout.block_bytes
    length = arguments.max_model_len or text.max_position_embeddings
    if length == "auto":  # v1/core/kv_cache_utils.py, _auto_fit_max_model_len
        length = layout.longest_request(blocks, text.max_position_embeddings, batched) or 1
    per_request = layout.blocks_at_most(length, batched)
    taken = weights_bytes + graphs + sampler + base + available  # the budget, unless the size of the cache is set
    return MemoryPlan(
        device=gpu.name if gpu else "cpu",
        total_bytes=gpu.usable_bytes if gpu else host_bytes,
        budget_bytes=budget,
        weights_bytes=weights_bytes,
        pinned_bytes=pinned_bytes,
        graphs_bytes=graphs,
        sampler_bytes=sampler,
        base_bytes=base,
        available_bytes=available,
        explicit=bool(pool),
        blocks=blocks,
        block_bytes=layout.block_bytes,
        cache_layers=sum(group.layers for group in layout.groups),
        max_model_len=length,
        max_num_seqs=sequences,
        blocks_per_request=per_request,
        request_bytes=per_request * layout.block_bytes,
        full_requests=blocks / per_request,
        pool_tokens=int(blocks / per_request * length),
        typical_tokens=TYPICAL_TOKENS,
        # a chunk is one token while a request generates
        typical_requests=blocks // layout.blocks_at_most(TYPICAL_TOKENS, 1),
        fits_one=blocks >= per_request and available > 0,
        longest_request=layout.longest_request(blocks, length, batched),
        shortages=plan_shortages(
            *(rows, text.vocab_size, length, gpu.usable_bytes - CONTEXT_BYTES - taken), flashinfer=flashinfer
        )
        if gpu
        else None,
    )


def kv_element_bytes(kv_cache_dtype: str, model_dtype: str) -> int:
    """Bytes of one element of the KV cache; raises UnplannedError for a dtype without known size."""
    name = model_dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    if size := _KV_BYTES.get(name) or DTYPE_BYTES.get(name):
        return size
    raise UnplannedError(f"kv-cache-dtype {name!r} has no known size; the plan knows {', '.join(_KV_BYTES)}")
