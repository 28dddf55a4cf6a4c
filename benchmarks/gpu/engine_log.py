"""The engine's own figures, from the log and the metrics of vLLM 0.20.2."""

import re
from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.endpoint import Measured, Served
from tests.harness.http import get

_NUMBERS = {
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "loading_s": r"Model loading took [\d.]+ GiB(?: memory)? and ([\d.]+) seconds",
    "available_kv_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "pool_tokens": r"GPU KV cache size: ([\d,]+) tokens",
    "full_requests": r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x",
    "compile_s": r"torch\.compile took ([\d.]+) s in total",
    "engine_init_s": r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s",
    "graphs_s": r"Graph capturing finished in ([\d.]+) secs",
    "graphs_gib": r"Graph capturing finished in [\d.]+ secs, took ([\d.]+) GiB",
}
MOMENTS = {
    "arguments read": r"non-default args",
    "configured": r"Asynchronous scheduling is",
    "engine core": r"Initializing a V1 LLM engine",
    "weights": r"Starting to load model",
    "weights loaded": r"Model loading took",
    "compiled": r"Directly load AOT compilation|torch\.compile took",
    "graphs estimated": r"Estimated CUDA graph memory",
    "cache sized": r"GPU KV cache size",
    "graphs captured": r"Graph capturing finished",
    "engine warm": r"init engine \(",
    "server": r"Starting vLLM server on",
}
"""The moments of a start in their order, each with the line of vLLM 0.20.2 that shows it."""
KEY_LINES = (
    *("Model loading took", "Available KV cache", "GPU KV cache size", "Maximum concurrency", "torch.compile took"),
    *("Graph capturing finished", "init engine (", "Directly load", "Dynamo bytecode", "Compiling a graph"),
    *("Initial free memory", "Initializing a V1", "Starting to load", "starting:", "ready after", "memory plan"),
    *("exit code", "profiling CUDA graph", "CUDA graph memory", "encoder cache", "WARNING servekit", "ERROR servekit"),
)


def figures(endpoint: Measured) -> dict[str, float]:
    """Return what the engine has printed about its weights, its cache and its start."""
    return read_figures(list(endpoint.lines))


def read_figures(lines: Iterable[str]) -> dict[str, float]:
    """Return the first occurrence of each figure in some lines."""
    found: dict[str, float] = {}
    for line in lines:
        for name, pattern in _NUMBERS.items():
            if name not in found and (match := re.search(pattern, line)):
                found[name] = float(match.group(1).replace(",", ""))
    return found


def moments(endpoint: Measured) -> dict[str, float]:
    """Return the second of each moment of the start that the log shows so far."""
    found: dict[str, float] = {}
    for age_s, line in zip(list(endpoint.ages_s), list(endpoint.lines), strict=False):
        for name, pattern in MOMENTS.items():
            if name not in found and re.search(pattern, line):
                found[name] = age_s
    return found


def cache_config(endpoint: Served) -> dict[str, str]:
    """Return the labels of vllm:cache_config_info, read through servekit's metrics."""
    text = get(f"{endpoint.observe_url}/metrics")[1]
    line = next((line for line in text.splitlines() if line.startswith("vllm:cache_config_info{")), "")
    return dict(re.findall(r'(\w+)="([^"]*)"', line))


def compare(plan: dict[str, Any], engine: dict[str, float]) -> dict[str, float]:
    """Return planned / real - 1 for the weights, the pool and the number of full-length requests."""
    pairs = {
        "weights": (plan.get("weights_bytes", 0) / (1 << 30), engine.get("weights_gib")),
        "available": (plan.get("available_bytes", 0) / (1 << 30), engine.get("available_kv_gib")),
        "pool_tokens": (plan.get("pool_tokens", 0), engine.get("pool_tokens")),
        "full_requests": (plan.get("full_requests", 0), engine.get("full_requests")),
    }
    return {name: round(planned / real - 1, 4) for name, (planned, real) in pairs.items() if planned and real}
