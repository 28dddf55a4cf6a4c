"""KV cache scales: a checkpoint without them is consistent; calibrated ones are wrong if layers share a cache.

vLLM 0.20.2 gives a KV-shared layer the default scale of 1.0, while the layer that owns the cache wrote it with the
calibrated scale (models/gemma4.py, layers/attention/attention.py): the output degrades silently.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import CONFIG
from servekit.preflight.checkpoint.shard_header import ShardError, Tensor, read_scalar
from servekit.preflight.checkpoint.text_config import TextConfig
from servekit.preflight.findings import Finding, error, note, warning

_STORED_AS: Final = (".k_scale", ".v_scale", ".k_proj.output_scale", ".v_proj.output_scale")


def check_kv_scales(
    tensors: Sequence[Tensor], text: TextConfig | None, quantization: Mapping[str, Any] | None, target: str
) -> Iterator[Finding]:
    """Check the stored scales and the declared KV cache format; reads the few bytes of each scale."""
    yield from _check_scheme((quantization or {}).get("kv_cache_scheme"), target)
    scales = [tensor for tensor in tensors if tensor.name.endswith(_STORED_AS)]
    calibrated = [tensor for tensor in scales if not _is_one(tensor)]
    shared = text.num_kv_shared_layers if text else 0
    if calibrated and shared:
        yield error(
            "kv-scales",
            f"{len(calibrated)} calibrated scales, such as {calibrated[0].name}, on a model whose last {shared} layers "
            f"share the cache of earlier ones: vLLM {ENGINE_VERSION} gives those no scales, and answers degrade",
            file=calibrated[0].shard.name,
            remedy="remove the k_scale and v_scale tensors: without them every layer uses 1.0",
        )
    elif scales and not calibrated:
        yield note("kv-scales-unit", f"{len(scales)} KV scales are stored, all 1.0, which has no effect")


def _is_one(tensor: Tensor) -> bool:
    try:
        return tensor.elements == 1 and read_scalar(tensor) == 1.0
    except (OSError, ShardError):
        return False


def _check_scheme(scheme: object, target: str) -> Iterator[Finding]:
    fp8 = {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "tensor"}
    valid = isinstance(scheme, dict) and fp8.items() <= scheme.items()
    message = "makes vLLM use an FP8 cache, whatever kv-cache-dtype is"
    message += "; the CPU engine has none" if target == "cpu" else ""
    if scheme is not None:
        report = warning if valid and target != "cpu" else error
        yield report(
            "kv-cache-scheme",
            message
            if valid
            else f"is not a symmetric 8-bit float per tensor: vLLM {ENGINE_VERSION} rejects {scheme!r}",
            file=CONFIG,
            key="quantization_config.kv_cache_scheme",
            remedy="write null: the profile's kv-cache-dtype decides",
        )
