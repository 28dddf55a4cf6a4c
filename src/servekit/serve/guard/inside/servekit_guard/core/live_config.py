"""The running engine's effective configuration, read from its live objects and not from its flags."""

import os
import sys
from operator import attrgetter
from typing import Any

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
"""By name: the attribute path below vLLM 0.20.2's VllmConfig."""

MODALITIES = ("image", "audio", "video")


def describe(app: Any) -> dict[str, Any]:
    """Return the effective configuration of the server `app` (vLLM's FastAPI application) as plain JSON.

    A value that this vLLM does not have under its path is listed in `missing` and not guessed, so that a contract
    that requires it is not met.
    """
    readers: dict[str, Any] = {
        **{name: attrgetter(f"vllm_config.{path}") for name, path in FIELDS.items()},
        "limit_mm_per_prompt": lambda state: {
            name: state.vllm_config.model_config.multimodal_config.get_limit_per_prompt(name) for name in MODALITIES
        },
        "served_model_names": lambda state: [each.name for each in state.openai_serving_models.base_model_paths],
    }
    described: dict[str, Any] = {"missing": []}
    for name, read in readers.items():
        try:
            described[name] = _plain(read(app.state))
        except AttributeError:
            described["missing"].append(name)
    return described | {
        "pillow": getattr(sys.modules.get("PIL"), "__version__", None),
        "media_redirects": os.environ.get("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "1") != "0",
        "media_connector": os.environ.get("VLLM_MEDIA_CONNECTOR", "http"),
        "middleware": [
            f"{each.cls.__module__}.{each.cls.__qualname__}" for each in getattr(app, "user_middleware", ())
        ],
        "routes": [  # without methods: a websocket, or a mounted application
            {"path": getattr(route, "path", ""), "methods": sorted(getattr(route, "methods", None) or ())}
            for route in getattr(app, "routes", ())
        ],
    }


def _plain(value: Any) -> Any:
    """Return enums, dtypes and paths as a person would write them."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else str(value)
