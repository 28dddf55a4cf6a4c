"""What can only be judged once a prompt is in tokens: the last look at a request before EngineCore gets it.

`AsyncLLM.add_request` is the one door of vLLM 0.20.2 to its EngineCore. Here every route's request is the same: token
ids and vLLM's own SamplingParams, with the checkpoint's defaults filled in. A ValueError is answered with 400.
"""

from dataclasses import dataclass
from typing import Any

MAX_LOGPROB_PROMPT_TOKENS = 1_024
"""Tokens of a prompt whose logprobs are asked for. Each takes 1.5 MiB of logits that no start rehearses: with an L4's
memory 1,000 were fine and 2,000 ended the engine (`v1/worker/gpu_model_runner.py`, `_get_prompt_logprobs_dict`)."""
MAX_PROMPT_LOGPROBS = 4_096
"""Logprobs of prompts in one HTTP request. vLLM looks each word up on the event loop, all of a prompt's at once."""
MAX_LOGPROBS = 32_768
"""Logprobs in an answer that is not streamed, which is put together in one go."""


@dataclass(frozen=True)
class Model:
    """What admission must know of the running model."""

    vocabulary_size: int
    max_model_len: int


class Admitted:
    """What one HTTP request has been let in for so far; its prompts and choices count together."""

    __slots__ = ("logprobs", "prompt_logprobs")

    def __init__(self) -> None:
        self.prompt_logprobs = 0
        self.logprobs = 0


def admit(admitted: Admitted, prompt: Any, params: Any, model: Model) -> None:
    """Count a request for the engine in; raises ValueError, in words for the client, when it would harm others.

    prompt: vLLM's `EngineInput`; params: its `SamplingParams`, whose `max_tokens` may be lowered.
    """
    tokens = prompt.get("prompt_token_ids") or []
    if tokens and not 0 <= min(tokens) <= max(tokens) < model.vocabulary_size:
        last = model.vocabulary_size - 1
        raise ValueError(f"The prompt has a token id outside the vocabulary: ids go from 0 to {last}.")
    _check_places(prompt, len(tokens))
    sequences = params.n or 1
    if params.prompt_logprobs is not None:
        _admit_prompt_logprobs(admitted, len(tokens), sequences * (params.prompt_logprobs + 1))
    if params.logprobs is not None and params.output_kind.name == "FINAL_ONLY":
        left_out = params.max_tokens is None or params.max_tokens + len(tokens) >= model.max_model_len
        _admit_logprobs(admitted, params, sequences * (params.logprobs + 1), may_lower=left_out)


def _check_places(prompt: Any, tokens: int) -> None:
    """See that every image's place is in the prompt: truncation may have cut it, which vLLM asserts much later."""
    for places in (prompt.get("mm_placeholders") or {}).values():
        if any(place.offset + place.length > tokens for place in places):
            raise ValueError("The prompt is too long: an image in it would be cut.")


def _admit_prompt_logprobs(admitted: Admitted, tokens: int, values: int) -> None:
    if tokens > MAX_LOGPROB_PROMPT_TOKENS:
        raise ValueError(
            f"Logprobs of a prompt (prompt_logprobs, or echo with logprobs) are limited to prompts of"
            f" {MAX_LOGPROB_PROMPT_TOKENS:,} tokens (got {tokens:,})."
        )
    admitted.prompt_logprobs += tokens * values
    if admitted.prompt_logprobs > MAX_PROMPT_LOGPROBS:
        raise ValueError(
            f"The request asks for more than {MAX_PROMPT_LOGPROBS:,} logprobs of prompts:"
            " tokens times (logprobs + 1), over all prompts and choices. Send fewer prompts in a request."
        )


def _admit_logprobs(admitted: Admitted, params: Any, values: int, *, may_lower: bool) -> None:
    """Bound the answer; a `max_tokens` that is only what the model's length leaves is lowered, not refused."""
    left = (MAX_LOGPROBS - admitted.logprobs) // values
    if may_lower and left > 0:
        params.max_tokens = left if params.max_tokens is None else min(params.max_tokens, left)
    elif params.max_tokens > left:
        raise ValueError(
            f"An answer that is not streamed may have {MAX_LOGPROBS:,} logprobs: max_tokens times (logprobs + 1), over"
            f" all prompts and choices. Set max_tokens to {left:,} or less, or stream."
        )
    admitted.logprobs += params.max_tokens * values
