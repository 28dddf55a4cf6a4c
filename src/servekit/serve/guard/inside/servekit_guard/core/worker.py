"""A general plugin of vLLM that patches the processes that hold the model, where the guard does not run.

vLLM 0.20.2 calls `register` in every process before it loads a model (`plugins/__init__.py`); an exception ends the
process, and with it the start. `PLUGIN` is its name in `servekit_guard-1.dist-info/entry_points.txt`.
"""

import importlib
import pkgutil
from typing import Any

from ..images import tower
from . import embeddings, lent_tokenizer, slices

PLUGIN = "servekit"
WRAPPED = {
    "worker.gpu_worker.Worker": ("load_model", tower.images_together),
    "sample.ops.penalties": ("apply_penalties", slices.penalties_in_slices),
    "sample.sampler.Sampler": ("forward", slices.logprobs_in_slices),
    "worker.gpu_input_batch.InputBatch": (
        "_make_prompt_token_ids_cpu_tensor",
        slices.prompts_of_penalised_rows,
    ),
    "worker.gpu_model_runner.GPUModelRunner": ("_get_prompt_logprobs_dict", slices.prompt_logprobs_in_slices),
}
"""What is wrapped: modules and classes below `vllm.v1`, each with the name of its function and the wrapper."""
PARSERS = {
    "parser.ParserManager": "Gemma4",
    "reasoning.ReasoningParserManager": "Reasoning",
    "tool_parsers.ToolParserManager": "Tools",
}
"""vLLM's registries, each with the class of `answers/parsers.py` that is `gemma4` there; vLLM imports it when used."""

registered = False
"""Whether vLLM has called `register` in this process."""
holds_model = True
"""Whether this process may hold the model: `early_core` knows that its server does not, and spares it imports."""


def register() -> None:
    """Limit the memory of penalties and logprobs, and let a CPU's random generator be rewound.

    `images.tower` lets several images share a pass through the image tower.
    `embeddings` may put the table of per-layer embeddings into host memory; `lent_tokenizer` only saves time.
    `answers.parsers` replaces vLLM's `gemma4`, here because EngineCore asks it when structured output begins.
    """
    global registered  # noqa: PLW0603 - vLLM calls this in each process; the guard checks that it did
    if registered:
        return
    if holds_model:
        for place, (name, wrapper) in WRAPPED.items():
            owner = pkgutil.resolve_name(f"vllm.v1.{place}")
            setattr(owner, name, wrapper(getattr(owner, name)))
        embeddings.register()
    if importlib.import_module("vllm.platforms").current_platform.is_cpu():
        torch: Any = importlib.import_module("torch")
        torch.Generator = rewinding(torch.Generator)
    for manager, name in PARSERS.items():
        registry: Any = importlib.import_module(f"vllm.{manager.partition('.')[0]}")
        getattr(registry, manager.partition(".")[2]).lazy_parsers["gemma4"] = "servekit_guard.answers.parsers", name
    lent_tokenizer.register()
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
