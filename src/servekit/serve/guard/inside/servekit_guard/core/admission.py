"""Checks that need the prompt as tokens: the last ones before EngineCore gets a request.

`AsyncLLM.add_request` is the only way to EngineCore in vLLM 0.20.2. Here the requests of all routes look the same:
token ids and vLLM's own SamplingParams, with the checkpoint's defaults filled in. vLLM answers a ValueError with 400.
"""

from dataclasses import dataclass
from typing import Any

MAX_PROMPT_LOGPROBS = 4_096
"""Logprobs of prompts in one HTTP request. vLLM looks up each word on the event loop, a whole prompt in one go. Their
memory in the engine does not depend on the prompt's length (`slices.py`)."""
MAX_LOGPROBS = 32_768
"""Logprobs in an answer that is not streamed: vLLM builds it in one go."""


@dataclass(frozen=True)
class Model:
    """The limits of the running model; no token id is valid while they are unknown."""

    vocabulary_size: int = 0
    max_model_len: int = 0
    penalised_tokens: int | None = None
    """The longest prompt of a request with penalties; None: no bound."""


@dataclass(slots=True)
class Admitted:
    """What one HTTP request was admitted for so far; its prompts and choices count together."""

    prompt_logprobs: int = 0
    logprobs: int = 0


def admit(admitted: Admitted, prompt: Any, params: Any, model: Model) -> None:
    """Admit a request to the engine; raises ValueError, with a message for the client, when it would harm others.

    prompt: vLLM's `EngineInput`; params: its `SamplingParams`, whose `max_tokens` may be lowered.
    """
    tokens = prompt.get("prompt_token_ids") or []
    if tokens and not 0 <= min(tokens) <= max(tokens) < model.vocabulary_size:
        raise ValueError(
            f"The prompt has a token id outside the vocabulary: ids go from 0 to {model.vocabulary_size - 1}."
        )
    _check_places(prompt, len(tokens))
    _check_penalties(params, len(tokens), model.penalised_tokens)
    sequences = params.n or 1
    if params.prompt_logprobs is not None:
        _admit_prompt_logprobs(admitted, len(tokens), sequences * (params.prompt_logprobs + 1))
    if params.logprobs is not None and params.output_kind.name == "FINAL_ONLY":
        left_out = params.max_tokens is None or params.max_tokens + len(tokens) >= model.max_model_len
        _admit_logprobs(admitted, params, sequences * (params.logprobs + 1), may_lower=left_out)


def _check_places(prompt: Any, tokens: int) -> None:
    """Check that every image has its place in the prompt: truncation may cut it, and vLLM asserts that much later."""
    for places in (prompt.get("mm_placeholders") or {}).values():
        if any(place.offset + place.length > tokens for place in places):
            raise ValueError("The prompt is too long: truncation would cut an image in it.")


def _check_penalties(params: Any, tokens: int, most: int | None) -> None:
    """Check the length that penalties may have to look at: the engine's memory holds it for each row of the batch."""
    if most is None or tokens <= most:
        return
    if params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1:
        raise ValueError(
            "Requests with frequency_penalty, presence_penalty or repetition_penalty are limited to prompts of"
            f" {most:,} tokens (got {tokens:,}) by the memory beside this server's cache. Send it without penalties;"
            " the server's operator can lower gpu-memory-utilization for longer prompts."
        )


def _admit_prompt_logprobs(admitted: Admitted, tokens: int, values: int) -> None:
    admitted.prompt_logprobs += tokens * values
    if admitted.prompt_logprobs > MAX_PROMPT_LOGPROBS:
        raise ValueError(
            f"A request may ask for {MAX_PROMPT_LOGPROBS:,} logprobs of prompts (prompt_logprobs, or echo with"
            " logprobs): tokens times (logprobs + 1), over all prompts and choices. Send shorter or fewer prompts."
        )


def _admit_logprobs(admitted: Admitted, params: Any, values: int, *, may_lower: bool) -> None:
    """Limit the answer; a `max_tokens` that only fills the model's length is lowered instead of refused."""
    left = (MAX_LOGPROBS - admitted.logprobs) // values
    if may_lower and left > 0:
        params.max_tokens = left if params.max_tokens is None else min(params.max_tokens, left)
    elif params.max_tokens > left:
        raise ValueError(
            f"An answer that is not streamed may have {MAX_LOGPROBS:,} logprobs: max_tokens times (logprobs + 1), over"
            f" all prompts and choices. Set max_tokens to {left:,} or less, or stream."
        )
    admitted.logprobs += params.max_tokens * values
