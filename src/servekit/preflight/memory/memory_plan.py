"""The memory plan: what the weights leave for the KV cache, how many requests that holds, and what runs out first.

Pure arithmetic over values; nothing here looks at a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from servekit.preflight.checkpoint.config_file import DTYPE_BYTES
from servekit.preflight.checkpoint.text_config import TextConfig
from servekit.preflight.memory.gpu_models import GIB, GpuModel
from servekit.preflight.memory.kv_layout import KvLayout, LayoutError, kv_layout

CUDA_BLOCK_TOKENS: Final = 16
"""vLLM 0.20.2, config/cache.py, DEFAULT_BLOCK_SIZE; what TRITON_ATTN keeps on CUDA."""
CPU_BLOCK_TOKENS: Final = 128
"""vLLM 0.20.2, platforms/cpu.py, check_and_update_config."""
DEFAULT_UTILIZATION: Final = 0.92
"""vLLM 0.20.2, config/cache.py, gpu_memory_utilization."""
LARGE_BYTES: Final = 70 * GIB
DEFAULT_BATCHED_TOKENS: Final = (2048, 8192)
DEFAULT_SEQUENCES: Final = (256, 1024)
"""vLLM 0.20.2, engine/arg_utils.py, get_batch_defaults: of an API server on GPUs below and from LARGE_BYTES on."""
TYPICAL_TOKENS: Final = 1_000
"""A typical request, prompt and answer together."""

_KV_BYTES: Final[Mapping[str, int]] = {
    "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "bfloat16": 2, "float16": 2, "float32": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Overheads:
    """What vLLM 0.20.2 takes on CUDA beside weights and KV cache, measured and adjustable.

    Measured with gemma-4-E4B on two H100 hosts, max-num-seqs 1024, max-num-batched-tokens 4096, torch.compile: of 20.08
    GiB 6.36 were left for W4A16 with FP8 KV and 0.94 for BF16, of 20.20 GiB 6.48 and 1.06.
    """

    graphs_bytes: int = round(0.54 * GIB)
    """CUDA graphs; none with `enforce-eager`."""
    base_bytes: int = round(0.52 * GIB)
    """CUDA context, libraries, and activations of one step: what is left after the sampler of the 4.5 GiB measured
    beside weights and KV cache."""
    sampler_bytes_per_logit: int = 14
    """The sampler's warm-up holds, for `max-num-seqs` rows of the vocabulary, the logits in BF16 and three FP32 tensors
    (logits, probabilities, masked or random ones): v1/worker/gpu_model_runner.py, _dummy_sampler_run."""

    def sampler_bytes(self, sequences: int, vocabulary: int) -> int:
        """Return what the warm-up of the sampler takes, and so what `max-num-seqs` costs."""
        return sequences * vocabulary * self.sampler_bytes_per_logit


MEASURED: Final = Overheads()


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory goes; sizes in bytes, requests as vLLM counts them.

    On the CPU the pool is set directly: budget, graphs, sampler and base are 0.
    """

    device: str
    total_bytes: int
    budget_bytes: int
    weights_bytes: int
    graphs_bytes: int
    sampler_bytes: int
    base_bytes: int
    available_bytes: int
    layout: KvLayout
    blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    typical_tokens: int

    @property
    def blocks_per_request(self) -> int:
        """Blocks vLLM accounts for one request of `max_model_len`."""
        return self.layout.blocks_at_most(self.max_model_len, self.max_num_batched_tokens)

    @property
    def request_bytes(self) -> int:
        """Bytes of KV cache for one request of `max_model_len`."""
        return self.blocks_per_request * self.layout.block_bytes

    @property
    def full_requests(self) -> float:
        """Requests of `max_model_len` at once: what vLLM logs as maximum concurrency."""
        return self.blocks / self.blocks_per_request

    @property
    def pool_tokens(self) -> int:
        """What vLLM logs as the size of the KV cache in tokens."""
        return int(self.full_requests * self.max_model_len)

    @property
    def typical_requests(self) -> int:
        """Requests of `typical_tokens` at once while they generate."""
        return self.blocks // self.layout.blocks_decoding(self.typical_tokens)

    @property
    def fits_one(self) -> bool:
        """Whether one request of `max_model_len` fits: vLLM does not start otherwise."""
        return self.blocks >= self.blocks_per_request and self.available_bytes > 0

    @property
    def longest_request(self) -> int:
        """The longest request the pool holds, in tokens up to `max_model_len`."""
        return self.layout.longest_request(self.blocks, self.max_model_len, self.max_num_batched_tokens)


class UnplannedError(ValueError):
    """The profile uses a value the plan does not know."""


def plan_memory(
    text: TextConfig,
    weights_bytes: int,
    arguments: Mapping[str, Any],
    card: GpuModel,
    *,
    model_dtype: str = "bfloat16",
    overheads: Overheads = MEASURED,
    typical_tokens: int = TYPICAL_TOKENS,
) -> MemoryPlan:
    """Plan for a GPU. `arguments` are the profile's engine arguments under their dashed names.

    Raises UnplannedError for a KV cache dtype without known size, and LayoutError where vLLM has no layout.
    """
    sequences = _number(arguments, "max-num-seqs", DEFAULT_SEQUENCES[card.usable_bytes >= LARGE_BYTES])
    batched = batched_tokens(arguments, card)
    budget = int(card.usable_bytes * float(arguments.get("gpu-memory-utilization") or DEFAULT_UTILIZATION))
    graphs = 0 if arguments.get("enforce-eager") else overheads.graphs_bytes
    sampler = overheads.sampler_bytes(min(sequences, batched), text.vocab_size)
    available = budget - weights_bytes - graphs - sampler - overheads.base_bytes
    if explicit := _number(arguments, "kv-cache-memory-bytes", 0):
        available = explicit
    layout = _layout(text, arguments, model_dtype, CUDA_BLOCK_TOKENS)
    blocks = _blocks(layout, available, arguments)
    return MemoryPlan(
        device=card.name,
        total_bytes=card.usable_bytes,
        budget_bytes=budget,
        weights_bytes=weights_bytes,
        graphs_bytes=graphs,
        sampler_bytes=sampler,
        base_bytes=overheads.base_bytes,
        available_bytes=available,
        layout=layout,
        blocks=blocks,
        max_model_len=_max_model_len(text, arguments, layout, blocks, batched),
        max_num_seqs=sequences,
        max_num_batched_tokens=batched,
        typical_tokens=typical_tokens,
    )


def plan_cpu_memory(
    text: TextConfig,
    weights_bytes: int,
    arguments: Mapping[str, Any],
    *,
    kv_space_gib: int,
    total_bytes: int = 0,
    model_dtype: str = "bfloat16",
    typical_tokens: int = TYPICAL_TOKENS,
) -> MemoryPlan:
    """Plan for the CPU engine, whose pool is `kv_space_gib` (VLLM_CPU_KVCACHE_SPACE) whatever else is used."""
    available = kv_space_gib * GIB
    on_cpu = {**arguments, "kv-cache-dtype": "auto"}
    layout = _layout(text, on_cpu, model_dtype, CPU_BLOCK_TOKENS)
    blocks, batched = _blocks(layout, available, arguments), batched_tokens(arguments)
    return MemoryPlan(
        device="cpu",
        total_bytes=total_bytes,
        budget_bytes=0,
        weights_bytes=weights_bytes,
        graphs_bytes=0,
        sampler_bytes=0,
        base_bytes=0,
        available_bytes=available,
        layout=layout,
        blocks=blocks,
        max_model_len=_max_model_len(text, arguments, layout, blocks, batched),
        max_num_seqs=_number(arguments, "max-num-seqs", DEFAULT_SEQUENCES[0]),
        max_num_batched_tokens=batched,
        typical_tokens=typical_tokens,
    )


def batched_tokens(arguments: Mapping[str, Any], card: GpuModel | None = None) -> int:
    """Tokens of one step, as the profile or vLLM's default has it."""
    large = card is not None and card.usable_bytes >= LARGE_BYTES
    return _number(arguments, "max-num-batched-tokens", DEFAULT_BATCHED_TOKENS[large])


def kv_element_bytes(kv_cache_dtype: str, model_dtype: str) -> int:
    """Bytes of one element of the KV cache; raises UnplannedError for a dtype without known size."""
    name = model_dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    if name in _KV_BYTES:
        return _KV_BYTES[name]
    if name in DTYPE_BYTES:
        return DTYPE_BYTES[name]
    raise UnplannedError(f"kv-cache-dtype {name!r} has no known size; the plan knows {', '.join(_KV_BYTES)}")


def _layout(text: TextConfig, arguments: Mapping[str, Any], model_dtype: str, default_block_tokens: int) -> KvLayout:
    if _number(arguments, "tensor-parallel-size", 1) * _number(arguments, "pipeline-parallel-size", 1) > 1:
        raise UnplannedError("the plan is for one GPU, the profile splits the model over several")
    return kv_layout(
        text,
        block_tokens=_number(arguments, "block-size", default_block_tokens),
        element_bytes=kv_element_bytes(str(arguments.get("kv-cache-dtype") or "auto"), model_dtype),
        hybrid=not arguments.get("disable-hybrid-kv-cache-manager"),
    )


def _max_model_len(text: TextConfig, arguments: Mapping[str, Any], layout: KvLayout, blocks: int, batched: int) -> int:
    # -1 lets vLLM 0.20.2 take the longest context that fits (v1/core/kv_cache_utils.py, _auto_fit_max_model_len)
    if arguments.get("max-model-len") == -1:
        return layout.longest_request(blocks, text.max_position_embeddings, batched) or 1
    return _number(arguments, "max-model-len", text.max_position_embeddings)


def _blocks(layout: KvLayout, available: int, arguments: Mapping[str, Any]) -> int:
    return _number(arguments, "num-gpu-blocks-override", 0) or layout.blocks_of(available)


def _number(arguments: Mapping[str, Any], key: str, default: int) -> int:
    value = arguments.get(key)
    return value if type(value) is int and value > 0 else default


__all__ = [
    "MEASURED",
    "LayoutError",
    "MemoryPlan",
    "Overheads",
    "UnplannedError",
    "batched_tokens",
    "kv_element_bytes",
    "plan_cpu_memory",
    "plan_memory",
]
