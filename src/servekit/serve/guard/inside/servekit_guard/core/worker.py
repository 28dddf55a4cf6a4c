"""A general plugin of vLLM's: what must be mended where the model runs, in a process that the guard is not in.

vLLM 0.20.2 calls `register` in every process before a model is loaded (`plugins/__init__.py`); an exception ends the
process, and with it the start. `PLUGIN` is its name in `servekit_guard-1.dist-info/entry_points.txt`.
"""

import importlib
from functools import wraps
from typing import Any

PLUGIN = "servekit"
ROWS_AT_ONCE = 64
"""Rows of a batch whose penalties are computed at once. At 262,144 words each takes 4.3 MiB, which no start rehearses;
1,024 ended an engine with an L4's memory. A row's result does not depend on the others."""

registered = False
"""Whether vLLM has called `register` in this process."""


def register() -> None:
    """Let penalties take the memory of `ROWS_AT_ONCE` rows, and let a CPU's random numbers be taken back."""
    global registered  # noqa: PLW0603 - vLLM calls this once in a process, the guard looks whether it did
    if registered:
        return
    penalties: Any = importlib.import_module("vllm.v1.sample.ops.penalties")
    penalties.apply_penalties = in_slices(penalties.apply_penalties)
    if importlib.import_module("vllm.platforms").current_platform.is_cpu():
        torch: Any = importlib.import_module("torch")
        torch.Generator = rewinding(torch.Generator)
    registered = True


def rewinding(generator: Any) -> Any:
    """Return PyTorch's `Generator`, whose numbers can be taken back on a CPU too, all of them at once.

    vLLM 0.20.2 takes back what a row has drawn while its prompt is still read (`_bookkeeping_sync` in
    `v1/worker/gpu_model_runner.py`), by an offset that only CUDA's generator has: on a CPU a `seed` with a prompt
    longer than one step ended EngineCore. Such a row has no token yet, so it begins at its seed again.
    """

    class Rewinding(generator):  # type: ignore[misc]
        def get_offset(self) -> int:
            return 0

        def set_offset(self, _offset: int) -> None:
            self.manual_seed(self.initial_seed())

    return Rewinding


def in_slices(apply: Any) -> Any:
    """Return vLLM's `apply_penalties`, which changes the logits in place, for a few rows at a time."""

    @wraps(apply)
    def apply_in_slices(logits: Any, *by_row: Any) -> Any:
        for first in range(0, logits.shape[0], ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            apply(logits[rows], *(each[rows] for each in by_row))
        return logits

    return apply_in_slices
