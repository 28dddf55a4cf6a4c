"""Sampling fields: values that use memory, affect other rows of the batch, or exceed the vocabulary."""

from tests.engine.killers.case import (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    RIGHT,
    UNHARMED,
    Case,
    Group,
    Target,
    fields,
    plain,
)

MASK = ("CVE-2026-114049", "CVE-2026-93840")
BAD_WORDS = ("CVE-2026-93989",)


def prompt_of(name: str, difference: int, **right: object) -> Case:
    """Return the case of a prompt of one token id, at this offset from the vocabulary's size."""
    return fields(name, COMPLETIONS, made=lambda target: {"prompt": [target.vocabulary + difference]}, **right)


TOKEN_IDS = Group(
    "token ids",
    (
        prompt_of("prompt of the first id after the vocabulary", 0, says=("prompt",)),
        prompt_of("prompt of an id far after the vocabulary", 1_000_000, says=("prompt",)),
        prompt_of("prompt of the last id", -1, statuses=RIGHT),
        fields(
            "prompts of ids, one after the vocabulary",
            COMPLETIONS,
            made=lambda target: {"prompt": [[2, 9], [2, target.vocabulary]]},
            says=("prompt",),
        ),
        plain("prompt of a negative id", COMPLETIONS, added={"prompt": [-1]}),
        plain("prompt of an id of 64 bits", COMPLETIONS, added={"prompt": [2**63]}),
        fields(
            "stop id after the vocabulary, with min_tokens",
            made=lambda target: {"min_tokens": 2, "stop_token_ids": [target.vocabulary]},
            says=("stop_token_ids",),
            closes=("CVE-2026-116181",),
        ),
        fields(
            "logit_bias after the vocabulary",
            made=lambda target: {"logit_bias": {str(target.vocabulary): 1}},
            says=("logit_bias",),
        ),
        fields(
            "logit_bias of the last id",
            made=lambda target: {"logit_bias": {str(target.vocabulary - 1): 1}},
            statuses=UNHARMED,
        ),
        plain("logit_bias of a word", added={"logit_bias": {"AI": -100}}, says=("logit_bias",)),
        plain("logit_bias of a far id", added={"logit_bias": {"191222000": -100}}, says=("logit_bias",)),
        fields(
            "allowed_token_ids after the vocabulary", made=lambda target: {"allowed_token_ids": [target.vocabulary]}
        ),
        plain("min_tokens over max_tokens", added={"min_tokens": 5}, closes=("CVE-2026-114051",)),
    ),
)

allowed = plain("allowed_token_ids", added={"allowed_token_ids": [900]}, closes=MASK)

OTHERS = Group(
    "fields that reach into other rows",
    (
        *(allowed,) * 20,
        *(plain("bad_words", added={"bad_words": ["hello"]}, statuses=UNHARMED),) * 5,
        plain("bad_words of an empty word", added={"bad_words": [""]}, says=("bad_words",), closes=BAD_WORDS),
        plain("bad_words of a space", added={"bad_words": [" "]}, says=("bad_words",), closes=BAD_WORDS),
        plain("allowed_token_ids empty", added={"allowed_token_ids": []}),
    ),
)


def long_prompt(_target: Target) -> str:
    """Return a prompt of 4,000 words."""
    return "word " * 4000


MEMORY = Group(
    "what takes memory for every token of the prompt or every row",
    (
        fields(
            "prompt_logprobs for 15,000 ids",
            COMPLETIONS,
            made=lambda _target: {"prompt": [9] * 15_000, "prompt_logprobs": 20},
            says=("prompt_logprobs",),
        ),
        fields(
            "prompt_logprobs for 4,000 words",
            COMPLETIONS,
            made=lambda target: {"prompt": long_prompt(target), "prompt_logprobs": 1},
            says=("prompt_logprobs",),
        ),
        fields(
            "echo with logprobs for 4,000 words",
            COMPLETIONS,
            made=lambda target: {"prompt": long_prompt(target), "echo": True, "logprobs": 1},
            says=("logprobs",),
        ),
        fields(
            "prompt_logprobs for 4,000 words of a chat",
            made=lambda target: {"messages": [{"role": "user", "content": long_prompt(target)}], "prompt_logprobs": 1},
            says=("prompt_logprobs",),
        ),
        plain("all prompt_logprobs", COMPLETIONS, added={"prompt_logprobs": -1}),
        plain("loglikelihood of a short prompt", COMPLETIONS, added={"echo": True, "logprobs": 1}, statuses=RIGHT),
        plain("logprobs of everything", added={"logprobs": True, "top_logprobs": -1}),
        plain("logprobs over the limit", added={"logprobs": True, "top_logprobs": 1000}),
        plain("16,384 choices", added={"n": 16_384, "temperature": 1}, says=("n",)),
        fields(
            "10,000 prompts",
            COMPLETIONS,
            made=lambda _target: {"prompt": ["a"] * 10_000},
            closes=("CVE-2026-73559", "CVE-2026-34756"),
        ),
        plain("beams", added={"use_beam_search": True, "n": 16_384}),
    ),
)

LISTS = Group(
    "lists without an end",
    (
        fields(
            "bad_words of 2,000,000 words",
            made=lambda _target: {"bad_words": ["abcdefg"] * 2_000_000},
            says=("values",),
        ),
        fields(
            "bad_words of 600,000 words", made=lambda _target: {"bad_words": ["abcdefg"] * 600_000}, says=("values",)
        ),
        fields(
            "bad_words of 10,000 words", made=lambda _target: {"bad_words": ["abcdefg"] * 10_000}, says=("bad_words",)
        ),
        fields(
            "500,000 stop strings",
            made=lambda _target: {"stop": [f"s{number}" for number in range(500_000)]},
            says=("values",),
        ),
        fields(
            "500,000 stop strings for completions",
            COMPLETIONS,
            made=lambda _target: {"stop": ["s"] * 500_000},
            says=("values",),
        ),
        fields("a stop string of 10,000,000", made=lambda _target: {"stop": "s" * 10_000_000}, says=("stop",)),
        fields("1,000,000 stop ids", made=lambda _target: {"stop_token_ids": [9] * 1_000_000}, says=("values",)),
        fields(
            "200,000 vllm_xargs",
            made=lambda _target: {"vllm_xargs": {f"x{number}": 1 for number in range(200_000)}},
            says=("vllm_xargs",),
        ),
        fields(
            "200,000 vllm_xargs for responses",
            RESPONSES,
            made=lambda _target: {"vllm_xargs": {f"x{number}": 1 for number in range(200_000)}},
            says=("vllm_xargs",),
        ),
        fields(
            "100,000 biases",
            made=lambda _target: {"logit_bias": {str(number): 1 for number in range(100_000)}},
            says=("logit_bias",),
        ),
        fields(
            "100,000 metadata",
            made=lambda _target: {"metadata": {f"m{number}": "x" for number in range(100_000)}},
            statuses=UNHARMED,
        ),
        fields(
            "100,000 unknown fields",
            made=lambda _target: {f"f{number}": 1 for number in range(100_000)},
            statuses=UNHARMED,
        ),
        fields("a request id of 1,000,000", made=lambda _target: {"request_id": "r" * 1_000_000}, statuses=UNHARMED),
        fields("a cache salt of 1,000,000", made=lambda _target: {"cache_salt": "r" * 1_000_000}, statuses=UNHARMED),
        fields("a user of 1,000,000", made=lambda _target: {"user": "r" * 1_000_000}, statuses=UNHARMED),
    ),
)

NOT_JSON = ("NaN", "Infinity", "-Infinity")

NUMBERS = Group(
    "numbers out of range",
    (
        *(
            Case(
                f"{name} {value}",
                lambda target, name=name, value=value: (  # type: ignore[misc]
                    b'{"model": "%s", "max_tokens": 4, "%s": %s, "messages": [{"role": "user", "content": "x"}]}'
                    % (target.model.encode(), name.encode(), value.encode())
                ),
                CHAT,
                says=("JSON" if value in NOT_JSON else name,),
            )
            for name in ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
            for value in (*NOT_JSON, "1e400")
        ),
        plain("top_k of 70 bits", added={"top_k": 2**70}, says=("top_k",)),
        fields(
            "a seed with a prompt of two steps",
            COMPLETIONS,
            made=lambda _target: {"prompt": [9] * 5_000, "seed": 1, "temperature": 1},
            statuses=RIGHT,
        ),
        plain("seed of 70 bits", added={"seed": 2**70}, says=("seed",)),
        plain("max_tokens of nothing", added={"max_tokens": 0}),
        plain("greedy with two choices", added={"n": 2, "temperature": 0}),
        plain("temperature of 1e300", added={"temperature": 1e300}, statuses=UNHARMED),
        plain("temperature of 1e-300", added={"temperature": 1e-300}, statuses=UNHARMED),
        plain("repetition_penalty of 1e300", added={"repetition_penalty": 1e300}, statuses=UNHARMED),
        plain("repetition_penalty of 1e-300", added={"repetition_penalty": 1e-300}, statuses=UNHARMED),
        plain("priority", added={"priority": 1}, statuses=UNHARMED),
        plain("thinking_token_budget", added={"thinking_token_budget": 100}, statuses=RIGHT),
        plain("thinking_token_budget negative", added={"thinking_token_budget": -5}),
    ),
)

GROUPS = (TOKEN_IDS, OTHERS, MEMORY, LISTS, NUMBERS)
