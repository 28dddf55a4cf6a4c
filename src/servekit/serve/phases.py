"""The phases of a start: the lines of the engine that announce them, and how long each may last."""

import math
import re
from collections.abc import Mapping
from typing import Final

from servekit.serve.status import Phase, Status
from servekit.settings import Settings

# Lines of vLLM 0.20.2, CPU and CUDA builds: v1/engine/core.py, v1/worker/*_model_runner.py, compilation/backends.py,
# model_executor/model_loader/default_loader.py, v1/core/kv_cache_utils.py, entrypoints/openai/api_server.py.
# A phase that no line announces is only missing from the timeline: nothing depends on it.
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
    return next((phase for phase, sign in _SIGNS if sign.search(line)), None)


DEFAULT_START_S: Final[float] = Settings.model_fields["start_s"].default
PHASE_LIMITS_S: Final[Mapping[Phase, float]] = {
    Phase.ENGINE: 600,
    Phase.WEIGHTS: 1500,  # from a slow network file system
    Phase.COMPILE: 1500,  # one operator measured 11 minutes in all for a cold start (vllm issue 49782)
    Phase.WARM_UP: 900,
    Phase.VERIFY: 300,
}
"""Seconds after which a phase counts as stuck, even if time is left for the whole start.

They grow with a start time longer than the default. Imports have no limit of their own: an engine whose log level hides
the lines above seems to import until it answers.
"""
STALL_S: Final = 600.0
"""Seconds without a new byte after which a download counts as stuck. Its client gives up earlier, with the reason."""


def deadline_of(status: Status, start_s: float) -> tuple[float, str]:
    """Return the monotonic second at which this start fails, and in words why and what to do.

    `start_s` is for the engine: a download before it may take as long as bytes arrive.
    """
    phase, since_s = status.starts[-1]
    if phase is Phase.DOWNLOAD:
        moved_s = status.download.moved_s if status.download else since_s
        problem = (status.download and status.download.problem) or "check the network to the hub"
        return moved_s + STALL_S, f"the download has stood still for {STALL_S:g} s: {problem}"
    limit_s = PHASE_LIMITS_S.get(phase, math.inf) * max(1.0, start_s / DEFAULT_START_S)
    began_s = next(each_s for each, each_s in status.starts if each not in {Phase.PREFLIGHT, Phase.DOWNLOAD})
    advice = "raise SERVEKIT_START_S, or look at the engine's last lines"
    if since_s + limit_s < began_s + start_s:
        return since_s + limit_s, f"phase {phase} did not end within {limit_s:g} s; {advice}"
    return began_s + start_s, f"not ready within {start_s:g} s, last seen in phase {phase}; {advice}"
