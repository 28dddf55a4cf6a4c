"""Every rule that can be removed, and the requests that show why it exists."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.killers.harm import Seen, wrong_image
from tests.engine.killers.case import Case, Target
from tests.engine.killers.catalogue import find
from tests.engine.killers.content import half_an_emoji
from tests.engine.killers.sampling import allowed
from tests.harness.endpoint import Endpoint


@dataclass(frozen=True)
class Rule:
    """One rule: how to remove it, and what to send then, in this order."""

    name: str
    left_out: str
    """What `guard_without.py` removes: names of fields, or of parts of the guard with an @, comma-separated."""
    cases: tuple[Case, ...]
    wide: bool = False
    """Whether only the model with 262,144 words shows it."""
    backend: str = ""
    """The backend of structured output, when it is not the one that servekit sets."""
    look: Callable[[Endpoint, Target], Seen] | None = None
    """Sends the requests itself and returns what happened, when a stream beside them would not show it."""


def rule(name: str, left_out: str, *cases: str, wide: bool = False, backend: str = "") -> Rule:
    """Return a rule with cases of the catalogue, by name."""
    return Rule(name, left_out, tuple(find(case) for case in cases), wide, backend)


_BOUNDS = "@structured,@structure"

RULES = (
    rule("structured output: one backend", "", "JSON mode", "newline in a choice", backend="auto"),
    rule("structured output: json_object is true; one backend", "@structured", "json_object false", backend="auto"),
    rule("structured output: json is not empty; one backend", "@structured", "json empty", backend="auto"),
    rule(
        "structured output: structural_tag is closed; one backend",
        "@structured",
        "structural_tag empty",
        backend="auto",
    ),
    rule(
        "structured output: grammar is closed; one backend", "@structured", "JSON mode", "Lark grammar", backend="auto"
    ),
    rule("structured output: depth; one backend", _BOUNDS, "300 nested objects", backend="auto"),
    rule("structured output: depth of arrays; one backend", _BOUNDS, "600 nested arrays", backend="auto"),
    rule("structured output: choices", "@structured", "choice of 100,000"),
    rule("structured output: enum", "@structured", "enum of 100,000"),
    rule("structured output: alternatives of allOf", "@structured", "ten allOf of two anyOf each"),
    rule(
        "structured output: regex is closed; one backend", "@structured", "regex of nested repetitions", backend="auto"
    ),
    rule("prompt: ids of the vocabulary", "prompt,@admission", "prompt of the first id after the vocabulary"),
    rule("prompt: ids of 262,144", "prompt,@admission", "prompt of the first id after the vocabulary", wide=True),
    rule("stop_token_ids: ids of the vocabulary", "stop_token_ids", "stop id after the vocabulary, with min_tokens"),
    Rule("allowed_token_ids: refused", "allowed_token_ids", (allowed,) * 40),
    rule("bad_words: refused, many", "bad_words,@size", "bad_words of 600,000 words"),
    rule("bad_words: refused, an empty one", "bad_words", "bad_words of an empty word"),
    rule("mm_processor_kwargs: refused", "mm_processor_kwargs", "do_resize off beside an image"),
    Rule("uuid: refused", "@parts", (), look=wrong_image),
    rule("logprobs of a prompt: bounded", "prompt_logprobs,@admission", "prompt_logprobs for 15,000 ids"),
    rule("echo with logprobs: bounded", "echo,logprobs,@admission", "echo with logprobs for 4,000 words"),
    rule("sequences: prompts times n", "n,@sequences", "16,384 choices"),
    rule("stop: how many", "stop,@size", "500,000 stop strings"),
    rule("stop_token_ids: how many", "stop_token_ids,@size", "1,000,000 stop ids"),
    rule("vllm_xargs: refused", "vllm_xargs,@size", "200,000 vllm_xargs"),
    rule("messages: how many", "messages,@size", "100,000 messages"),
    rule("values of a body: how many", "messages,@size", "200,000 parts"),
    Rule("half an emoji: refused", "@half", (half_an_emoji,) * 60),
    rule("an image without a place: answered", "@placeless", "an image in a tool's answer"),
)
