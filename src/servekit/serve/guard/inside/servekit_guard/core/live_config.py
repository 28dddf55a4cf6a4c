"""What the running engine really does, read from its live objects and not from its flags."""

import os
import sys
from typing import Any

from ..refusals import Scope

FIELDS = {
    "model": "model_config.model",
    "dtype": "model_config.dtype",
    "quantization": "model_config.quantization",
    "multimodal": "model_config.is_multimodal_model",
    "head_dim": "model_config.hf_text_config.head_dim",
    "global_head_dim": "model_config.hf_text_config.global_head_dim",
    "max_model_len": "model_config.max_model_len",
    "vocab_size": "model_config.hf_text_config.vocab_size",
    "enforce_eager": "model_config.enforce_eager",
    "allowed_media_domains": "model_config.allowed_media_domains",
    "allowed_local_media_path": "model_config.allowed_local_media_path",
    "enable_mm_embeds": "model_config.multimodal_config.enable_mm_embeds",
    "enable_prompt_embeds": "model_config.enable_prompt_embeds",
    "mm_processor_cache_type": "model_config.multimodal_config.mm_processor_cache_type",
    "kv_transfer_config": "kv_transfer_config",
    "kv_cache_dtype": "cache_config.cache_dtype",
    "block_size": "cache_config.block_size",
    "num_gpu_blocks": "cache_config.num_gpu_blocks",
    "gpu_memory_utilization": "cache_config.gpu_memory_utilization",
    "enable_prefix_caching": "cache_config.enable_prefix_caching",
    "max_num_seqs": "scheduler_config.max_num_seqs",
    "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
    "enable_chunked_prefill": "scheduler_config.enable_chunked_prefill",
    "async_scheduling": "scheduler_config.async_scheduling",
    "encoder_cache_size": "scheduler_config.encoder_cache_size",
    "attention_backend": "attention_config.backend",
    "structured_outputs_backend": "structured_outputs_config.backend",
    "tensor_parallel_size": "parallel_config.tensor_parallel_size",
    "data_parallel_size": "parallel_config.data_parallel_size",
    "api_server_count": "parallel_config._api_process_count",
    "shutdown_timeout": "shutdown_timeout",
}
"""Name here: attribute path below vLLM 0.20.2's VllmConfig."""

MODALITIES = ("image", "audio", "video")


def describe(app: Any) -> dict[str, Any]:
    """Return the effective configuration of the server `app` (vLLM's FastAPI application) as plain JSON.

    A value vLLM no longer has under its path is listed in `missing`, never guessed, so that a contract
    that asks for it is not met.
    """
    config = getattr(app.state, "vllm_config", None)
    described: dict[str, Any] = {}
    missing = []
    for name, path in FIELDS.items():
        try:
            described[name] = _plain(_follow(config, path))
        except AttributeError:
            missing.append(name)
    try:
        multimodal = _follow(config, "model_config.multimodal_config")
        described["limit_mm_per_prompt"] = {name: multimodal.get_limit_per_prompt(name) for name in MODALITIES}
    except AttributeError:
        missing.append("limit_mm_per_prompt")
    described["served_model_names"] = _served_model_names(app, missing)
    described["pillow"] = getattr(sys.modules.get("PIL"), "__version__", None)
    described["media_redirects"] = os.environ.get("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "1") != "0"
    described["media_connector"] = os.environ.get("VLLM_MEDIA_CONNECTOR", "http")
    described["middleware"] = [_name(entry.cls) for entry in getattr(app, "user_middleware", ())]
    described["routes"] = _routes(app)
    described["missing"] = missing
    return described


def vocabulary_size(scope: Scope) -> int | None:
    """Return how many token ids the running model has; None when that cannot be told."""
    try:
        size = _follow(scope["app"].state.vllm_config, FIELDS["vocab_size"])
    except (AttributeError, KeyError):
        return None
    return size if isinstance(size, int) else None


def _follow(value: Any, path: str) -> Any:
    for attribute in path.split("."):
        value = getattr(value, attribute)
    return value


def _plain(value: Any) -> Any:
    """Turn enums, dtypes and paths into the text a person would write."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else str(value)


def _served_model_names(app: Any, missing: list[str]) -> list[str]:
    try:
        return [str(path.name) for path in app.state.openai_serving_models.base_model_paths]
    except AttributeError:
        missing.append("served_model_names")
        return []


def _routes(app: Any) -> list[dict[str, Any]]:
    """Return the server's own route table; `methods` is empty for a websocket or a mounted application."""
    return [
        {"path": getattr(route, "path", ""), "methods": sorted(getattr(route, "methods", None) or ())}
        for route in getattr(app, "routes", ())
    ]


def _name(cls: Any) -> str:
    return f"{getattr(cls, '__module__', '')}.{getattr(cls, '__qualname__', cls)}"
