"""Which phase of its start the engine is in, read from the lines it prints."""

import re

from servekit.serve.status import Phase

# Lines of vLLM 0.20.2, CPU and CUDA builds: v1/engine/core.py, v1/worker/*_model_runner.py, compilation/backends.py,
# model_executor/model_loader/default_loader.py, v1/core/kv_cache_utils.py, entrypoints/openai/api_server.py.
# A phase that no line announces is only missing from the timeline: nothing is decided by it.
_SIGNS: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    (Phase.ENGINE, re.compile(r"Initializing a V1 LLM engine")),
    (Phase.WEIGHTS, re.compile(r"Starting to load model|Loading safetensors checkpoint shards")),
    (
        Phase.COMPILE,
        re.compile(
            r"Model loading took|Warming up model for the compilation|Dynamo bytecode transform|torch\.compile cache|"
            r"Compiling a graph|Directly load the compiled graph|backend_[0-9]+ for vLLM's torch\.compile"
        ),
    ),
    (
        Phase.WARM_UP,
        re.compile(r"Warming up done|GPU KV cache size|Capturing CUDA graphs|Graph capturing finished"),
    ),
)


def phase_of(line: str) -> Phase | None:
    """Return the phase that this line of the engine announces, if it announces one."""
    for phase, sign in _SIGNS:
        if sign.search(line):
            return phase
    return None
