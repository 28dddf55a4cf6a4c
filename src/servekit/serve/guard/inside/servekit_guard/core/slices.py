"""Penalties and logprobs, computed for a few rows at a time, in the processes that hold the model.

One row that asks for them makes vLLM 0.20.2 compute them for the whole batch, and a prompt's logprobs for all of its
tokens in one go. Its start rehearses neither (`v1/worker/gpu_model_runner.py`, `_dummy_sampler_run`): on a GPU with
the memory of an L4 one such request ended the engine. `preflight/memory/shortages.py` has the bytes. A row's result
does not depend on the others.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace
from typing import Any

ROWS_AT_ONCE = 64
"""Large enough to keep a GPU busy: at 262,144 words 64 rows of penalties take 352 MiB, of logprobs 160 MiB."""


def slices(rows: int) -> Iterator[slice]:
    """Yield slices of at most `ROWS_AT_ONCE` rows."""
    for first in range(0, rows, ROWS_AT_ONCE):
        yield slice(first, first + ROWS_AT_ONCE)


def penalties_in_slices(apply: Any) -> Any:
    """Wrap `apply_penalties` (`model_executor/layers/utils.py`), which changes the logits in place."""

    @wraps(apply)
    def apply_in_slices(logits: Any, *by_row: Any) -> Any:
        for rows in slices(logits.shape[0]):
            apply(logits[rows], *(each[rows] for each in by_row))
        return logits

    return apply_in_slices


def prompts_of_penalised_rows(make: Any) -> Any:
    """Wrap `InputBatch._make_prompt_token_ids_cpu_tensor`: it copies the prompts of rows with penalties only.

    Penalties read prompts, and vLLM copies those of all rows to the GPU, each as long as the longest.
    """

    @wraps(make)
    def make_shorter(batch: Any) -> Any:
        if batch.no_penalties:
            return make(batch)
        lengths = batch.num_prompt_tokens
        additive = (batch.frequency_penalties_cpu != 0) | (batch.presence_penalties_cpu != 0)
        batch.num_prompt_tokens = lengths * (additive | (batch.repetition_penalties_cpu != 1))
        try:
            return make(batch)
        finally:
            batch.num_prompt_tokens = lengths

    return make_shorter


def logprobs_in_slices(forward: Any) -> Any:
    """Wrap `Sampler.forward` (`v1/sample/sampler.py`): it computes logprobs after sampling, when memory is free again.

    vLLM computes those of the whole batch first and keeps them. Sampling works on a copy in FP32, so the model's own
    logits are still unchanged afterwards, unless they are FP32 themselves.
    """

    @wraps(forward)
    def sample_first(self: Any, logits: Any, sampling_metadata: Any, *others: Any, **named: Any) -> Any:
        count = sampling_metadata.max_num_logprobs
        mode = named.get("logprobs_mode_override") or self.logprobs_mode
        if count is None or count < 0 or mode != "raw_logprobs" or logits.element_size() > 2:  # noqa: PLR2004 - bytes
            return forward(self, logits, sampling_metadata, *others, **named)
        output = forward(self, logits, replace(sampling_metadata, max_num_logprobs=None), *others, **named)
        if output.logprobs_tensors is None:
            sampled = output.sampled_token_ids.squeeze(-1).long()
            output.logprobs_tensors = _gather(self, lambda rows: logits[rows], count, sampled)
        return output

    return sample_first


def prompt_logprobs_in_slices(get: Any) -> Any:
    """Wrap `GPUModelRunner._get_prompt_logprobs_dict`: its logits exist for a few tokens of the prompt at a time.

    The method gets a stand-in for the runner. Its model returns the hidden states in place of logits, and its sampler
    makes logits of them, and logprobs, slice by slice.
    """

    @wraps(get)
    def get_in_slices(runner: Any, *arguments: Any) -> Any:
        def gather(hidden: Any, count: int, targets: Any) -> Any:
            return _gather(runner.sampler, lambda rows: runner.model.compute_logits(hidden[rows]), count, targets)

        others = {
            "model": SimpleNamespace(compute_logits=_unchanged),
            "sampler": SimpleNamespace(compute_logprobs=_unchanged, gather_logprobs=gather),
            "_sync_device": runner._sync_device,  # noqa: SLF001 - the only method that vLLM's calls
        }
        return get(SimpleNamespace(**vars(runner) | others), *arguments)

    return get_in_slices


def _unchanged(hidden: Any) -> Any:
    return hidden


def _gather(sampler: Any, logits_of: Callable[[slice], Any], count: int, targets: Any) -> Any:
    """Return vLLM's `LogprobsTensors` of the rows whose tokens are `targets`."""
    parts = [
        sampler.gather_logprobs(sampler.compute_logprobs(logits_of(rows)), count, targets[rows])
        for rows in slices(targets.shape[0])
    ]
    cat = importlib.import_module("torch").cat
    return type(parts[0])(*(cat(each) for each in zip(*(part[:3] for part in parts), strict=True)))
