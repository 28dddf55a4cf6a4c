"""KV cache scales: none is consistent; calibrated ones are wrong where layers share the cache of others.

vLLM 0.20.2 gives a KV-shared layer no scales of its own and the default of 1.0, while the layer it shares with wrote
the cache with the calibrated ones (models/gemma4.py, layers/attention/attention.py): the output degrades silently.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from servekit.preflight.checkpoint.config_file import CONFIG
from servekit.preflight.checkpoint.shard_header import FLOAT_DTYPES, ShardError, Tensor, read_scalar
from servekit.preflight.checkpoint.text_config import TextConfig
from servekit.preflight.findings import Finding, error, note, warning

_STORED_AS: Final = (".k_scale", ".v_scale", ".k_proj.output_scale", ".v_proj.output_scale")


def check_kv_scales(
    tensors: Sequence[Tensor], text: TextConfig | None, quantization: Mapping[str, Any] | None, target: str
) -> Iterator[Finding]:
    """Judge stored scales and the declared KV cache format; reads the few bytes of each scale."""
    yield from _check_scheme((quantization or {}).get("kv_cache_scheme"), target)
    scales = [tensor for tensor in tensors if tensor.name.endswith(_STORED_AS)]
    if not scales:
        return
    calibrated = [tensor for tensor in scales if not _is_one(tensor)]
    shared = text.num_kv_shared_layers if text else 0
    if calibrated and shared:
        yield error(
            "kv-scales",
            f"{len(calibrated)} calibrated scales, such as {calibrated[0].name}, on a model whose last {shared} "
            "layers share the cache of earlier ones: vLLM 0.20.2 gives those no scales, answers degrade silently",
            subject=calibrated[0].shard.name,
            remedy="remove the k_scale and v_scale tensors: without them every layer uses 1.0",
        )
    elif not calibrated:
        yield note("kv-scales-unit", f"{len(scales)} KV scales are stored, all 1.0: the same as none")


def _is_one(tensor: Tensor) -> bool:
    if tensor.elements != 1 or tensor.dtype not in FLOAT_DTYPES:
        return False
    try:
        return read_scalar(tensor) == 1.0
    except (OSError, ShardError):
        return False


def _check_scheme(scheme: object, target: str) -> Iterator[Finding]:
    if scheme is None:
        return
    sound = (
        isinstance(scheme, dict)
        and scheme.get("type") == "float"
        and scheme.get("num_bits") == 8  # noqa: PLR2004 - FP8
        and scheme.get("symmetric") is True
        and scheme.get("strategy") == "tensor"
    )
    if not sound:
        yield error(
            "kv-cache-scheme",
            f"kv_cache_scheme is no symmetric 8-bit float by tensor: vLLM 0.20.2 refuses {scheme!r}",
            subject=CONFIG,
            remedy="set kv_cache_scheme to null and choose kv-cache-dtype in the profile",
        )
    elif target == "cpu":
        yield error(
            "kv-cache-scheme",
            "kv_cache_scheme makes vLLM use an FP8 cache whatever kv-cache-dtype says; the CPU engine has none",
            subject=CONFIG,
            remedy="set kv_cache_scheme to null",
        )
    else:
        yield warning(
            "kv-cache-scheme",
            "kv_cache_scheme makes vLLM use an FP8 cache whatever kv-cache-dtype says",
            subject=CONFIG,
            remedy="set kv_cache_scheme to null: the profile decides",
        )
