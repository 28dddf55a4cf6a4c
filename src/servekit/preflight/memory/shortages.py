"""What requests take of the GPU's memory that vLLM 0.20.2's start does not rehearse, by rows and tokens.

The start samples one batch of `max-num-seqs` rows (`v1/worker/gpu_model_runner.py`, _dummy_sampler_run): what that
takes is free for every later step. Penalties, logprobs and structured output come on top of it. The guard's plugin
(`core/slices.py`) computes the first two for a few rows at a time, so that they fit into what sampling leaves free.
What stays for the whole batch has to fit beside the budget: `plan_shortages` says how much that is, and the longest
prompt with penalties that it allows.

The bytes are those of the tensors that exist together; the peaks measured on an H100 agree within 0.02 GiB, and
PyTorch's allocator on a CPU to the byte (tests/guard/test_slices.py).
"""

from dataclasses import dataclass
from typing import Final

from servekit.preflight.memory.gpu_models import GIB

LOGITS_BYTES: Final = 2 + 4
"""By row and word, while a step samples: the model's logits in BF16 and their copy in FP32."""
SAMPLED_BYTES: Final = LOGITS_BYTES + 4 + 4
"""With probabilities and exponential noise in FP32 (v1/sample/ops/topk_topp_sampler.py, forward_native): of a sampled
batch, with or without seeds. A greedy one takes LOGITS_BYTES."""
PENALTY_BYTES: Final = 2 * (8 + 1) + 4
"""Penalties, by row and word: counts in INT64 and a mask, of prompt and answer each, and one product in FP32
(model_executor/layers/utils.py, apply_penalties)."""
LOGPROB_BYTES: Final = 4 + 4
"""Logprobs, by row and word: log_softmax converts to FP32 first (v1/sample/sampler.py, compute_logprobs)."""
PROMPT_TOKEN_BYTES: Final = 8
"""A token of each row's prompt, padded to the longest with penalties, in INT64; it stays while the batch does."""
ANSWER_TOKEN_BYTES: Final = 8 + 1
"""A token of each row's answer, padded to the longest, while penalties are computed: INT64 and a mask."""
ROWS_AT_ONCE: Final = 64
"""Rows whose penalties or logprobs are computed together: `core/slices.py`."""
MULTIPROCESSORS: Final = 160
"""More than a GPU has: an L4 58, an H100 132, a B200 148. vLLM's top-k kernel keeps one FP32 row for each."""
CONTEXT_BYTES: Final = GIB // 2
"""The CUDA context: beside the budget, because vLLM takes its first look at the memory with the context there."""


@dataclass(frozen=True)
class Demand:
    """What one kind of request takes at its worst: every row of the batch asks for it, at full length."""

    name: str
    fixed_bytes: int
    """For the rows that are computed together."""
    row_bytes: int
    """For each row of the batch, as soon as one row asks for it."""
    token_bytes: int
    """For each row of the batch and each token of the longest one."""
    takes_bytes: int
    beyond_bytes: int
    """The part that does not fit into what the rehearsal leaves free at that moment."""


@dataclass(frozen=True)
class Shortages:
    """The demands beside the rehearsed batch of `rows` rows, and the memory for them; bytes."""

    rows: int
    rehearsed_bytes: int
    room_bytes: int
    """What CUDA shows, without its context and without what vLLM plans with."""
    penalised_tokens: int
    """The longest prompt with penalties that fits; the guard rejects longer ones. `max-model-len` where all fit."""
    demands: tuple[Demand, ...]


def plan_shortages(
    rows: int, words: int, longest_tokens: int, room_bytes: int, *, flashinfer: bool = False
) -> Shortages:
    """Plan for a batch of `rows` rows over a vocabulary of `words`, with prompts and answers of `longest_tokens`.

    `flashinfer`: the start rehearses FlashInfer's sampler, but one seed sends its batch to vLLM's own. That holds as
    much and, from then on, the buffer of its top-k kernel (v1/sample/ops/topk_topp_triton.py).
    """
    together, room = min(rows, ROWS_AT_ONCE), max(0, room_bytes)
    rehearsed = rows * words * SAMPLED_BYTES
    mask = words // 8  # one bit for each word: v1/structured_output
    # Penalties come before sampling, when probabilities and noise do not exist yet; logprobs after it.
    before, after = rows * words * (SAMPLED_BYTES - LOGITS_BYTES), rows * words * (SAMPLED_BYTES - 2)
    counts = together * (words * PENALTY_BYTES + longest_tokens * 8)
    answers = rows * longest_tokens * ANSWER_TOKEN_BYTES
    early = max(0, counts + answers - before)
    seeded = min(rows, MULTIPROCESSORS) * words * 4 if flashinfer else 0
    left = room - rows * mask - seeded - early
    penalised = max(0, min(longest_tokens, left // (rows * PROMPT_TOKEN_BYTES)))
    prompts = rows * penalised * PROMPT_TOKEN_BYTES
    both = PROMPT_TOKEN_BYTES + ANSWER_TOKEN_BYTES
    logprobs, of_prompt = together * words * LOGPROB_BYTES, together * words * (LOGPROB_BYTES + 2)
    return Shortages(
        rows=rows,
        rehearsed_bytes=rehearsed,
        room_bytes=room,
        penalised_tokens=penalised,
        demands=(
            Demand("penalties", counts, 0, both, counts + answers + prompts, early + prompts),
            Demand("logprobs", logprobs, 0, 0, logprobs, max(0, logprobs - after)),
            Demand("logprobs of a prompt", of_prompt, 0, 0, of_prompt, max(0, of_prompt - after)),
            Demand("structured output", 0, mask, 0, rows * mask, rows * mask),
            Demand("a seed", seeded, 0, 0, seeded, seeded),
        ),
    )
