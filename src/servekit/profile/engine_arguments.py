"""The engine's arguments as servekit reasons about them: typed, complete, resolved once where the plan is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from servekit.profile.argument_table import MODALITIES, engine_arguments
from servekit.profile.contract import CONTRACT, UNLIMITED, item_count
from servekit.profile.values import Value

LARGE_GPU_BYTES: Final = 70 * 1024**3

BATCH_DEFAULTS: Final = {"cpu": (128, 2048), "small": (256, 2048), "large": (1024, 8192)}
"""max-num-seqs and max-num-batched-tokens of an API server: vLLM 0.20.2, engine/arg_utils.py, get_batch_defaults."""
BLOCK_TOKENS: Final = {"cpu": 128, "cuda": 16}
"""vLLM 0.20.2: platforms/cpu.py, check_and_update_config; config/cache.py; TRITON_ATTN keeps this size."""


@dataclass(frozen=True)
class EngineArguments:
    """What the engine runs with. A value that the profile leaves out is vLLM 0.20.2's default for the target.

    None where vLLM takes the value from the checkpoint, or has none.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    block_size: int
    """Tokens in one block of the KV cache."""
    cpu_offload_gb: float
    """GiB of the decoder layers' weights that stay in the host's memory."""
    limit_mm_per_prompt: Mapping[str, int]
    """Items of each modality in one prompt."""
    kv_cache_dtype: str = "auto"
    cpu_offload_params: list[str] = field(default_factory=list)
    load_format: str = "auto"
    offload_backend: str = "auto"
    offload_group_size: int = 0
    dtype: str = "auto"
    max_model_len: int | Literal["auto"] | None = None
    """`auto` is the longest that fits the memory; None is the model's own context."""
    quantization: str | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enforce_eager: bool = False
    max_cudagraph_capture_size: int | None = None
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    disable_hybrid_kv_cache_manager: bool = False
    chat_template: str | None = None
    speculative_config: Mapping[str, Value] | None = None
    mm_processor_kwargs: Mapping[str, Value] | None = None
    structured_outputs_config: Mapping[str, Value] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    """The fields that the profile or the target sets; the others are defaults."""

    @property
    def contract(self) -> dict[str, Value]:
        """The contract's values that the profile or the target sets, by their keys; None where it sets none."""
        limits = {kind: count for kind, count in self.limit_mm_per_prompt.items() if count != UNLIMITED}
        values = {name: getattr(self, name) for name in self.given} | {"limit_mm_per_prompt": limits or None}
        return {key: values.get(key.replace("-", "_")) for key in CONTRACT}


def resolve(values: Mapping[str, Value], *, target: str, gpu_name: str = "", gpu_bytes: int = 0) -> EngineArguments:
    """Complete the profile's `values` (by their dashed names) for `target`, "cuda" or "cpu", and its GPU."""
    keys = {each.name: each.name.replace("_", "-") for each in fields(EngineArguments) if each.name != "given"}
    given = {name: values[key] for name, key in keys.items() if key in values}
    table = engine_arguments()
    defaults = {name: table[key].default for name, key in keys.items() if table[key].default is not None}
    # vLLM looks for the name as well: engine/arg_utils.py, get_batch_defaults
    size = "large" if gpu_bytes >= LARGE_GPU_BYTES and "a100" not in gpu_name.lower() else "small"
    defaults |= _batch(values, *BATCH_DEFAULTS["cpu" if target == "cpu" else size])
    known: dict[str, Any] = defaults | {"block_size": BLOCK_TOKENS[target]} | given
    counts = {kind: item_count(limit) for kind, limit in known.pop("limit_mm_per_prompt").items()}
    limits: dict[str, Any] = dict.fromkeys(MODALITIES, UNLIMITED) | counts
    return EngineArguments(**known, limit_mm_per_prompt=limits, given=frozenset(given))


def _batch(values: Mapping[str, Value], sequences: int, batched: int) -> dict[str, int]:
    """Return the defaults of the batch as vLLM adapts them to what else is set (arg_utils.py)."""
    numbers = {key: value for key, value in values.items() if isinstance(value, int)}
    if values.get("performance-mode") == "throughput":
        sequences, batched = 2 * sequences, 2 * batched
    if length := numbers.get("max-model-len"):
        batched = max(length, batched) if numbers.get("enable-chunked-prefill") is False else batched
        batched = min(numbers.get("max-num-seqs", sequences) * length, batched)
    sequences = min(sequences, numbers.get("max-num-batched-tokens", batched))
    return {"max_num_seqs": sequences, "max_num_batched_tokens": batched}
