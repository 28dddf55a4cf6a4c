"""Run with the engine's Python and the guard on its path: what `core/slices.py` changes, as JSON on the last line."""

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiles nothing, as on the CPU engine

import numpy as np
import torch
from servekit_guard.core import worker
from servekit_guard.core.slices import ROWS_AT_ONCE
from vllm import _custom_ops
from vllm.v1.sample import sampler as sampling
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops import penalties, topk_topp_sampler
from vllm.v1.worker.gpu_input_batch import InputBatch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

Sampler = sampling.Sampler
WORDS = 1024
SIZES = (1, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, 3 * ROWS_AT_ONCE + 1)
ROWS = 4 * ROWS_AT_ONCE
TOKENS = 8


def metadata(rows: int, **changes: Any) -> SamplingMetadata:
    """Return what Gemma's generation_config asks for, in every row."""
    values = {
        name: torch.full((rows,), value) for name, value in (("temperature", 1.0), ("top_p", 0.95), ("top_k", 64))
    }
    amounts = {f"{name}_penalties": torch.full((rows,), 1.1) for name in ("frequency", "presence", "repetition")}
    nothing = dict.fromkeys(("max_num_logprobs", "logprob_token_ids", "prompt_token_ids", "allowed_token_ids_mask"))
    others: dict[str, Any] = {"output_token_ids": [], "spec_token_ids": [], "bad_words_token_ids": {}, "generators": {}}
    flags = {"all_greedy": False, "all_random": True, "no_penalties": True, "logitsprocs": LogitsProcessors()}
    return SamplingMetadata(**values | amounts | nothing | others | flags | changes)


def penalised(rows: int) -> dict[str, Any]:
    """Return the metadata of a batch with penalties: prompts and answers of TOKENS tokens."""
    prompts = torch.randint(0, WORDS + 1, (rows, TOKENS))
    return {"no_penalties": False, "prompt_token_ids": prompts, "output_token_ids": [[5] * TOKENS] * rows}


def logits(rows: int) -> torch.Tensor:
    """Return the model's logits."""
    return torch.empty(rows, WORDS, dtype=torch.bfloat16).normal_()


def runner(rows: int) -> Any:
    """Return what `_get_prompt_logprobs_dict` reads of a runner; its model's logits do not depend on the batch."""
    request = SimpleNamespace(prompt_token_ids=list(range(rows + 1)), num_computed_tokens=0)
    return SimpleNamespace(
        num_prompt_logprobs={"a": 3},
        input_batch=SimpleNamespace(in_progress_prompt_logprobs_cpu={}, req_id_to_index={"a": 0}),
        requests={"a": request},
        device="cpu",
        query_start_loc=SimpleNamespace(np=np.array([0])),
        model=SimpleNamespace(compute_logits=lambda hidden: torch.tanh(hidden / 30) * 30),
        sampler=Sampler(),
        _sync_device=lambda: None,
    )


def batch(prompts: list[int], frequency: list[float]) -> Any:
    """Return what `_make_prompt_token_ids_cpu_tensor` reads of an InputBatch: `prompts` are their lengths."""
    rows = len(prompts)
    return SimpleNamespace(
        num_reqs=rows,
        num_prompt_tokens=np.array(prompts),
        no_penalties=not any(frequency),
        frequency_penalties_cpu=np.array(frequency),
        presence_penalties_cpu=np.zeros(rows),
        repetition_penalties_cpu=np.ones(rows),
        token_ids_cpu=np.full((rows, 50), 7),
        pin_memory=False,
        vocab_size=WORDS,
    )


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most that PyTorch's allocator held at once for `work`, by its own events."""
    work()
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        events = [each for each in json.loads(path.read_text())["traceEvents"] if each.get("name") == "[memory]"]
    held = np.cumsum([each["args"]["Bytes"] for each in sorted(events, key=lambda each: each["ts"])])
    return int(held.max())


def peaks(prompt_logprobs: Callable[..., Any]) -> dict[str, int]:
    """Return the peaks of a step by what its rows ask for."""
    sampler = Sampler()
    sampler.topk_topp_sampler.forward = sampler.topk_topp_sampler.forward_native  # as on a GPU
    greedy = {"temperature": None, "all_greedy": True, "all_random": False}
    asked: dict[str, dict[str, Any]] = {
        "greedy": greedy,
        "sampled": {},
        "seeded": {"generators": {0: torch.Generator().manual_seed(5)}},
        "logprobs": {"max_num_logprobs": 20},
        "penalties": penalised(ROWS),
        "both": penalised(ROWS) | {"max_num_logprobs": 20},
    }
    found = {}
    for name, changes in asked.items():
        step = partial(metadata, ROWS, **changes)
        found[name] = peak_bytes(partial(_sample, sampler, step))
    hidden = logits(ROWS)
    return found | {"logprobs of a prompt": peak_bytes(lambda: prompt_logprobs(runner(ROWS), hidden, {"a": ROWS + 1}))}


def _sample(sampler: Any, step: Callable[[], SamplingMetadata]) -> Any:
    return sampler(logits=logits(ROWS), sampling_metadata=step())  # by name, as vLLM calls it


def same(some: Any, others: Any) -> bool:
    """Return whether two LogprobsTensors are equal bit for bit."""
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(some[:3], others[:3], strict=True))


def main() -> None:
    """Compare vLLM's own functions with the sliced ones."""
    # A GPU has kernels without copies of the logits for these.
    sampling.batched_count_greater_than = lambda logits, values: torch.stack(
        [(row >= value).sum() for row, value in zip(logits, values, strict=True)]
    )
    topk_topp_sampler.apply_top_k_top_p = lambda logits, _k, _p: logits
    whole_repetition = _custom_ops.apply_repetition_penalties
    _custom_ops.apply_repetition_penalties = lambda *_: None
    report: dict[str, Any] = {"words": WORDS, "rows": ROWS, "tokens": TOKENS}
    report["whole"] = peaks(GPUModelRunner._get_prompt_logprobs_dict)
    _custom_ops.apply_repetition_penalties = whole_repetition
    whole = (penalties.apply_penalties, Sampler.forward, GPUModelRunner._get_prompt_logprobs_dict)
    make = InputBatch._make_prompt_token_ids_cpu_tensor
    worker.register()
    worker.register()
    report["equal"] = [equal(rows, *whole) for rows in SIZES]
    mixed, plain = batch([30, 4, 50], [0.0, 0.5, 0.0]), batch([30, 4, 50], [0.0] * 3)
    report["prompts"] = InputBatch._make_prompt_token_ids_cpu_tensor(mixed).tolist()
    report["lengths_kept"] = mixed.num_prompt_tokens.tolist() == [30, 4, 50]
    report["without_penalties"] = torch.equal(InputBatch._make_prompt_token_ids_cpu_tensor(plain), make(plain))
    _custom_ops.apply_repetition_penalties = lambda *_: None
    report["sliced"] = peaks(GPUModelRunner._get_prompt_logprobs_dict)
    print(json.dumps(report))


def equal(rows: int, whole_penalties: Any, whole_forward: Any, whole_prompt: Any) -> dict[str, bool]:
    """Return whether each result is equal bit for bit."""
    torch.manual_seed(rows)
    sampler, given = Sampler(), logits(rows)
    by_row = (
        torch.randint(0, WORDS + 1, (rows, 50)),
        torch.randint(0, WORDS + 1, (rows, 30)),
        *torch.rand(3, rows) + 0.5,
    )
    expected, got = given.float(), given.float()
    whole_penalties(expected, *by_row)
    returned = penalties.apply_penalties(got, *by_row)
    asked = {"temperature": None, "all_greedy": True, "all_random": False, "max_num_logprobs": 5} | penalised(rows)
    one, other = (
        forward(sampler, given.clone(), metadata(rows, **asked)) for forward in (whole_forward, Sampler.forward)
    )
    prompts = [
        get(runner(rows), given, {"a": rows + 1})["a"]
        for get in (whole_prompt, GPUModelRunner._get_prompt_logprobs_dict)
    ]
    wide = [forward(sampler, given.float(), metadata(rows, **asked)) for forward in (whole_forward, Sampler.forward)]
    return {
        "penalties": torch.equal(expected, got) and returned is got and not torch.equal(got, given.float()),
        "tokens": torch.equal(one.sampled_token_ids, other.sampled_token_ids),
        "logprobs": same(one.logprobs_tensors, other.logprobs_tensors),
        "logprobs of FP32 logits": same(wide[0].logprobs_tensors, wide[1].logprobs_tensors),
        "logprobs of a prompt": same(*prompts),
    }


if __name__ == "__main__":
    main()
