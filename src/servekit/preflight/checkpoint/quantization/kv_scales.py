"""KV cache scales: a checkpoint without them is consistent; calibrated ones are wrong if layers share a cache.

vLLM 0.20.2 gives a KV-shared layer the default scale of 1.0, while the layer that owns the cache wrote it with the
calibrated scale (models/gemma4.py, layers/attention/attention.py): the output degrades silently.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.quantization.saying import saying
from servekit.preflight.checkpoint.shard_header import ShardError, Tensor, read_scalar
from servekit.preflight.checkpoint.text_config import TextConfig
from servekit.preflight.findings import Finding, error, note, warning

_STRATEGIES: Final = ("tensor", "attn_head")
_FLASH_HEAD: Final = 256
"""FlashAttention's largest head."""
_NULL: Final = "write null: the profile's kv-cache-dtype decides"
_STORED_AS: Final = (".k_scale", ".v_scale")


def check_kv_scales(tensors: Sequence[Tensor], config: ModelConfig, target: str) -> Iterator[Finding]:
    """Check the stored scales and the declared KV cache format; reads the few bytes of each scale."""
    text, scheme = config.text, (config.quantization or {}).get("kv_cache_scheme")
    yield from _check_scheme(scheme, text, config.quantization_key, target)
    scales = [tensor for tensor in tensors if tensor.name.endswith(_STORED_AS)]
    # vLLM 0.20.2 has a place for them only in a quantized model (compressed_tensors.py, CompressedTensorsKVCacheMethod)
    calibrated = [tensor for tensor in scales if config.quantization and not _is_one(tensor)]
    several = [tensor for tensor in calibrated if tensor.elements != 1]
    shared = text.num_kv_shared_layers if text else 0
    if calibrated and shared:
        ignored = target == "cpu" and not several
        yield (warning if ignored else error)(
            "kv-scales",
            f"{len(calibrated)} calibrated scales, such as {calibrated[0].name}, on a model whose last {shared} layers "
            f"share the cache of earlier ones: vLLM {ENGINE_VERSION} gives those no scales, and answers degrade"
            + (" on a GPU; the CPU engine ignores the scales" if ignored else ""),
            file=calibrated[0].shard.name,
            remedy="remove the k_scale and v_scale tensors: without them every layer uses 1.0",
        )
    elif several and not (isinstance(scheme, dict) and scheme.get("strategy") == "attn_head"):
        yield error(
            "kv-scales",
            f"{several[0].name} holds {several[0].elements} values: vLLM {ENGINE_VERSION} takes one for each layer",
            file=several[0].shard.name,
            remedy="remove the k_scale and v_scale tensors: without them every layer uses 1.0",
        )
    elif scales and not calibrated:
        why = "all 1.0" if config.quantization else "in a model that is not quantized"
        yield note("kv-scales-unit", f"{len(scales)} KV scales are stored, {why}, which has no effect")


def _is_one(tensor: Tensor) -> bool:
    try:
        return tensor.elements == 1 and read_scalar(tensor) == 1.0
    except (OSError, ShardError):
        return False


def _check_scheme(scheme: object, text: TextConfig | None, section: str, target: str) -> Iterator[Finding]:
    """Report what vLLM makes of kv_cache_scheme (compressed_tensors.py, validate_kv_cache_scheme)."""
    if scheme is None:
        return
    say = partial(saying(section), name="kv-cache-scheme", key="kv_cache_scheme")
    given = scheme if isinstance(scheme, dict) else {}
    strategy = given.get("strategy")
    rejected = {
        f"vLLM {ENGINE_VERSION} takes a JSON object, not {type(scheme).__name__}": not given,
        f"vLLM {ENGINE_VERSION} takes strategy tensor or attn_head, not {strategy!r}": strategy not in _STRATEGIES,
        f"vLLM {ENGINE_VERSION} takes symmetric scales only": not given.get("symmetric"),
        f"is {given.get('type')}{given.get('num_bits')}: vLLM {ENGINE_VERSION} would store an FP8 cache, float8": (
            given.get("type"),
            given.get("num_bits"),
        )
        != ("float", 8),
        "the CPU engine has no FP8 cache, which it makes vLLM use": target == "cpu",
        f"strategy attn_head needs scales for each head, which vLLM {ENGINE_VERSION} has with FlashAttention only; it "
        "runs this model, whose head sizes differ, with Triton": strategy == "attn_head" and _triton(text),
    }
    reasons = [reason for reason, holds in rejected.items() if holds]
    if reasons:
        yield say(error, message="; ".join(reasons), remedy=_NULL)
    else:
        yield say(warning, message="makes vLLM use an FP8 cache, whatever kv-cache-dtype is", remedy=_NULL)


def _triton(text: TextConfig | None) -> bool:
    """Whether vLLM forces Triton attention, for its head sizes (models/config.py, Gemma4Config)."""
    heads = {text.head_dim, text.global_head_dim} if text else set()
    return len(heads) > 1 and max(heads) > _FLASH_HEAD
