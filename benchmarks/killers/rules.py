"""Every rule that can be taken out, and the requests that show why it is there."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.killers.harm import Seen, wrong_image
from tests.engine.killers.case import Case, Target
from tests.engine.killers.catalogue import find
from tests.engine.killers.content import half_an_emoji
from tests.engine.killers.sampling import allowed


@dataclass(frozen=True)
class Rule:
    """One rule: how it is taken out, and what is sent then, in this order."""

    name: str
    left_out: str
    """The beginnings of the fields' names whose refusals are passed over, comma-separated."""
    cases: tuple[Case, ...]
    wide: bool = False
    """Whether it shows on the model with 262,144 words only."""
    flags: tuple[str, ...] = ()
    """Added to `servekit serve`."""
    look: Callable[[Target], Seen] | None = None
    """Sends the requests itself and tells what was seen, where a stream beside them would not show it."""


def rule(name: str, left_out: str, *cases: str, wide: bool = False, flags: tuple[str, ...] = ()) -> Rule:
    """Return a rule with cases of the catalogue, by their names."""
    return Rule(name, left_out, tuple(find(case) for case in cases), wide, flags)


_OUTPUTS = "structured_outputs,response_format,tools,tool_choice,text"

RULES = (
    rule("structured output: json_object must be true", _OUTPUTS, "json_object false"),
    rule("structured output: json must not be empty", _OUTPUTS, "json empty"),
    rule("structured output: structural_tag is off", _OUTPUTS, "structural_tag empty"),
    rule("structured output: depth of a schema", _OUTPUTS, "300 nested objects"),
    rule("structured output: depth of arrays", _OUTPUTS, "600 nested arrays"),
    rule("structured output: depth of a tool's schema", _OUTPUTS, "a tool of 150 nested objects"),
    rule("structured output: grammar is off", _OUTPUTS, "JSON mode", "grammar with root twice"),
    rule("structured output: Lark grammars are off", _OUTPUTS, "JSON mode", "Lark grammar"),
    rule("structured output: number of choices", _OUTPUTS, "choice of 100,000"),
    rule("structured output: size of an enum", _OUTPUTS, "enum of 100,000"),
    rule("structured output: regex is off", _OUTPUTS, "regex of nested repetitions"),
    rule("structured output: repetitions in a pattern", _OUTPUTS, "pattern of nested repetitions"),
    rule("token ids of a prompt", "prompt", "prompt of the first id after the vocabulary"),
    rule("token ids of a prompt, 262,144 words", "prompt", "prompt of the first id after the vocabulary", wide=True),
    rule("stop_token_ids", "stop_token_ids", "stop id after the vocabulary, with min_tokens"),
    rule("bad_words: how many", "bad_words", "bad_words of 600,000 words"),
    rule("bad_words: none of them empty", "bad_words", "bad_words of an empty word"),
    Rule("allowed_token_ids", "allowed_token_ids", (allowed,) * 40),
    Rule("uuid of an image", "messages,uuid", (), look=wrong_image),
    rule("prompt_logprobs", "prompt_logprobs", "prompt_logprobs for 15,000 ids", wide=True),
    rule("echo with logprobs", "echo,logprobs", "echo with logprobs for 4,000 words", wide=True),
    rule("stop: how many", "stop", "500,000 stop strings"),
    rule("stop_token_ids: how many", "stop_token_ids", "1,000,000 stop ids"),
    rule("vllm_xargs: how many", "vllm_xargs", "200,000 vllm_xargs"),
    rule("messages: how many", "messages", "100,000 messages"),
    rule("parts of a message: how many", "messages", "200,000 parts"),
    rule("mm_processor_kwargs", "mm_processor_kwargs", "do_resize off beside an image"),
    rule("sequences of a request", "n", "16,384 choices"),
    rule("templates of a request", "chat_template_kwargs", "a template among chat_template_kwargs for /v1/responses"),
    Rule("half an emoji", "body,messages", (half_an_emoji,) * 60),
)
