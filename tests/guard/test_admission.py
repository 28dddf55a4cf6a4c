"""What is refused once a prompt is tokenized."""

from types import SimpleNamespace
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.core.admission import (
    MAX_LOGPROBS,
    MAX_PROMPT_LOGPROBS,
    Admitted,
    Model,
    admit,
)
from servekit.serve.guard.inside.servekit_guard.core.handoff import Handoff

MODEL = Model(vocabulary_size=1000, max_model_len=20_000)


def let_in(
    tokens: list[int], admitted: Admitted | None = None, places: Any = None, model: Model = MODEL, **asked: Any
) -> Any:
    """Admit a request for these tokens; return its sampling parameters as they are then."""
    given = {"n": 1, "logprobs": None, "prompt_logprobs": None, "max_tokens": 16, "kind": "FINAL_ONLY"}
    given |= {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0} | asked
    params = SimpleNamespace(**given, output_kind=SimpleNamespace(name=given["kind"]))
    admit(admitted or Admitted(), {"prompt_token_ids": tokens, "mm_placeholders": places}, params, model)
    return params


@pytest.mark.parametrize("token", [-1, 1000, 2**40])
def test_a_token_outside_the_vocabulary(token: int) -> None:
    """It would index the embeddings of EngineCore, which ends it."""
    with pytest.raises(ValueError, match="0 to 999"):
        let_in([5, token])


@pytest.mark.advisory("vllm#5907", "vllm#38830")
def test_logprobs_of_a_prompt_up_to_the_bound() -> None:
    """Logprobs are served up to the event loop's bound, however long the prompt; the error above it names the bound."""
    let_in([1] * MAX_PROMPT_LOGPROBS, prompt_logprobs=0)
    for tokens, count, choices in ((MAX_PROMPT_LOGPROBS + 1, 0, 1), (1024, 4, 1), (1024, 0, 5)):
        with pytest.raises(ValueError, match=r"4,096 logprobs of prompts \(prompt_logprobs"):
            let_in([1] * tokens, prompt_logprobs=count, n=choices)


def test_a_prompt_with_penalties_up_to_the_plans_bound() -> None:
    """A prompt longer than the memory plan allows beside penalties is refused with the number and what to do."""
    model = Model(vocabulary_size=1000, max_model_len=20_000, penalised_tokens=50)
    for name, value in (("frequency_penalty", 0.1), ("presence_penalty", -2), ("repetition_penalty", 0.9)):
        penalty: dict[str, Any] = {name: value}
        let_in([1] * 50, model=model, **penalty)
        let_in([1] * 51, model=MODEL, **penalty)
        with pytest.raises(ValueError, match=r"50 tokens \(got 51\).*gpu-memory-utilization"):
            let_in([1] * 51, model=model, **penalty)
    let_in([1] * 51, model=model)


def test_the_bound_reaches_the_running_model() -> None:
    """What the guard's configuration says holds once the engine has told its own limits."""
    config = SimpleNamespace(get_vocab_size=lambda: 1000, max_model_len=20_000)
    handoff = Handoff(50)
    handoff.watch(SimpleNamespace(model_config=config, add_request=None))
    assert handoff.model == Model(1000, 20_000, penalised_tokens=50)


def test_prompts_of_one_request_count_together() -> None:
    """Two prompts that pass separately are refused when one request has both."""
    admitted = Admitted()
    let_in([1] * 1000, admitted, prompt_logprobs=1)
    let_in([1] * 1000, admitted, prompt_logprobs=1)
    with pytest.raises(ValueError, match="over all prompts"):
        let_in([1] * 1000, admitted, prompt_logprobs=1)


def test_logprobs_of_an_answer() -> None:
    """Streams are not bounded, whole answers are; a length that the client did not set is lowered."""
    most = MAX_LOGPROBS // 21
    assert let_in([1], logprobs=20, max_tokens=most).max_tokens == most
    assert let_in([1], logprobs=20, max_tokens=19_999).max_tokens == most
    assert let_in([1], logprobs=20, max_tokens=15_000, kind="DELTA").max_tokens == 15_000
    with pytest.raises(ValueError, match=f"Set max_tokens to {most:,} or less, or stream"):
        let_in([1], logprobs=20, max_tokens=most + 1)


def test_an_image_whose_place_is_cut() -> None:
    """Truncation may remove an image's place from the prompt; vLLM would fail on it later, with 500."""
    let_in([1] * 10, places={"image": [SimpleNamespace(offset=2, length=8)]})
    with pytest.raises(ValueError, match="would cut an image in it"):
        let_in([1] * 9, places={"image": [SimpleNamespace(offset=2, length=8)]})
