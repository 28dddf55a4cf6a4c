"""A general plugin of vLLM that patches the processes that hold the model, where the guard does not run.

vLLM 0.20.2 calls `register` in every process before it loads a model (`plugins/__init__.py`); an exception ends the
process, and with it the start. `PLUGIN` is its name in `servekit_guard-1.dist-info/entry_points.txt`.
"""

import importlib
from functools import wraps
from typing import Any

from . import embeddings

PLUGIN = "servekit"
ROWS_AT_ONCE = 64
"""Rows of a batch whose penalties are computed together. At 262,144 words each row takes 4.3 MiB, which vLLM does not
profile at its start; 1,024 rows ended an engine with the memory of an L4. A row's result does not depend on others."""

PARSERS = {
    "parser.ParserManager": "Gemma4",
    "reasoning.ReasoningParserManager": "Reasoning",
    "tool_parsers.ToolParserManager": "Tools",
}
"""vLLM's registries, each with the class of `answers/parsers.py` that is `gemma4` there; vLLM imports it when used."""

registered = False
"""Whether vLLM has called `register` in this process."""


def register() -> None:
    """Limit the memory of penalties to `ROWS_AT_ONCE` rows, and let a CPU's random generator be rewound.

    `embeddings` may put the table of per-layer embeddings into host memory.
    `answers.parsers` replaces vLLM's `gemma4`, here because EngineCore asks it when structured output begins.
    """
    global registered  # noqa: PLW0603 - vLLM calls this in each process; the guard checks that it did
    if registered:
        return
    penalties: Any = importlib.import_module("vllm.v1.sample.ops.penalties")
    penalties.apply_penalties = in_slices(penalties.apply_penalties)
    if importlib.import_module("vllm.platforms").current_platform.is_cpu():
        torch: Any = importlib.import_module("torch")
        torch.Generator = rewinding(torch.Generator)
    for manager, name in PARSERS.items():
        registry: Any = importlib.import_module(f"vllm.{manager.partition('.')[0]}")
        getattr(registry, manager.partition(".")[2]).lazy_parsers["gemma4"] = "servekit_guard.answers.parsers", name
    embeddings.register()
    registered = True


def rewinding(generator: Any) -> Any:
    """Return a PyTorch `Generator` that can be rewound to its seed on a CPU too.

    vLLM 0.20.2 rewinds the generator of a row while its prompt is still being processed (`_bookkeeping_sync` in
    `v1/worker/gpu_model_runner.py`), by an offset that only CUDA's generator has: on a CPU, a `seed` with a prompt
    longer than one step ended EngineCore. Such a row has no token yet, so it can restart at its seed.
    """

    class Rewinding(generator):  # type: ignore[misc]
        def get_offset(self) -> int:
            return 0

        def set_offset(self, _offset: int) -> None:
            self.manual_seed(self.initial_seed())

    return Rewinding


def in_slices(apply: Any) -> Any:
    """Return vLLM's `apply_penalties`, which changes the logits in place, applied to a few rows at a time."""

    @wraps(apply)
    def apply_in_slices(logits: Any, *by_row: Any) -> Any:
        for first in range(0, logits.shape[0], ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            apply(logits[rows], *(each[rows] for each in by_row))
        return logits

    return apply_in_slices
