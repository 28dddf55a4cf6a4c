"""Structured output: finds every grammar in a request, and decides which of them the engine gets.

vLLM 0.20.2 compiles a grammar in EngineCore for each sequence, with one backend (`--structured-outputs-config`).
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from .bounds import BodyError, check_bound
from .fields import MAX_SEQUENCES
from .patterns import repetitions
from .schemas import SchemaMeter

EXTRA_KINDS = ("regex", "grammar", "structural_tag")
"""Refused unless the operator's setting names them."""
MAX_CHOICES = 1_000
MAX_CHOICE_CHARACTERS = 1_000
MAX_CHOICES_CHARACTERS = 32_768
MAX_GRAMMAR_CHARACTERS = 4_096
MAX_GRAMMAR_REPETITIONS = 1_000
MAX_TAGS = 16
MAX_WEIGHT = 4_096
"""Weight of a request's grammars times its sequences: vLLM compiles again for every prompt and for each of `n`."""
PATTERN_WEIGHT = 50
"""What a pattern adds to that: EngineCore fills its row's mask in 1 ms or more for every token, instead of 0.05 ms."""

_FIELD = "structured_outputs"
_KINDS = ("json", "json_object", "choice", *EXTRA_KINDS)
_OPTIONS = ("disable_any_whitespace", "disable_additional_properties")
_FREE_TOOL_CHOICES = (None, "none", "auto")
Found = tuple[str, str, Any]
"""Where a constraint was found, its kind (one of vLLM's, or `schema`), and its value."""


def check_structured(fields: dict[str, Any], allowed: Collection[str]) -> int:
    """Return the weight of the request's structured output over all its sequences; 0 when it has none.

    fields: the JSON body of any route. allowed: the kinds of EXTRA_KINDS that the operator accepts.
    Raises BodyError when the structured output must not reach the engine.
    """
    found = [*_params(fields.get(_FIELD)), *_response_format(fields), *_text_format(fields.get("text"))]
    if len(found) > 1:
        raise _error(found[0][0], "only one structured output constraint is accepted: remove the others.")
    meter = SchemaMeter()
    for where, kind, value in (*found, *_forced_tools(fields)):
        if kind in EXTRA_KINDS and kind not in allowed:
            raise _error(where, f"{kind} is not enabled on this server (setting SERVEKIT_STRUCTURED_OUTPUTS).")
        try:
            _CHECKS[kind](value, meter)
        except BodyError as error:
            raise _error(f"{where}{error.param or ''}", error.message) from None
    sequences = sequences_of(fields)
    weight = meter.weight + PATTERN_WEIGHT * meter.counts["patterns, formats and numeric ranges"]
    if weight > 1 and sequences > 1 and weight * sequences > MAX_WEIGHT:
        message = f"too large for {sequences} sequences: {weight} units each, at most {MAX_WEIGHT:,} in total."
        raise _error(found[0][0] if found else "tools", message)
    return max(1, weight) * sequences if found or meter.weight else 0


def sequences_of(fields: dict[str, Any]) -> int:
    """Return how many sequences a request starts, prompts times `n`; each is a row of the batch with its own grammar.

    A count over MAX_SEQUENCES is returned as MAX_SEQUENCES + 1.
    """
    prompt = fields.get("prompt")
    sequences = len(prompt) if isinstance(prompt, list) and not set(map(type, prompt)) <= {int} else 1
    for name in ("n", "best_of"):
        count = fields.get(name)
        if isinstance(count, (int, float)) and count > 1:
            sequences *= int(min(count, MAX_SEQUENCES + 1))
    return sequences


def _error(where: str, message: str) -> BodyError:
    return BodyError(f"{where}: {message}", where)


def _params(params: Any) -> Iterator[Found]:
    """Yield from vLLM's own field. Its parser accepts false and empty members, which end the engine."""
    if params is None:
        return
    if not isinstance(params, dict):
        raise _error(_FIELD, f"must be an object with one of {', '.join(_KINDS)}.")
    given = {name: value for name, value in params.items() if value is not None and name not in _OPTIONS}
    for name, value in given.items():
        where = f"{_FIELD}.{name}"
        if name == "whitespace_pattern":
            raise _error(where, "has no effect with this server's backend: remove it.")
        if name not in _KINDS:
            raise _error(where, f"is not a kind of structured output: use one of {', '.join(_KINDS)}.")
        yield where, name, value
    if not given:
        raise _error(_FIELD, f"must have one of {', '.join(_KINDS)}.")


def _response_format(fields: dict[str, Any]) -> Iterator[Found]:
    name = "response_format"
    value = fields.get(name)
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_schema":
        inner = value.get("json_schema")
        yield f"{name}.json_schema.schema", "schema", inner.get("schema") if isinstance(inner, dict) else None
    elif kind in ("json_object", "structural_tag"):
        yield name, kind, value if kind == "structural_tag" else True
    elif kind != "text":
        raise _error(name, "must be an object of type text, json_object or json_schema.")


def _text_format(text: Any) -> Iterator[Found]:
    """Yield the format of the Responses API; vLLM 0.20.2 makes a grammar of `json_schema` only."""
    form = text.get("format") if isinstance(text, dict) else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        yield "text.format.schema", "schema", form.get("schema", form.get("schema_"))


def _forced_tools(fields: dict[str, Any]) -> Iterator[Found]:
    """Yield the parameters of tools the model must call: a tool parser makes a grammar of them (`adjust_request`)."""
    choice, tools = fields.get("tool_choice"), fields.get("tools")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind in _FREE_TOOL_CHOICES or not isinstance(tools, list):
        return
    for number, tool in enumerate(tools):
        inner = tool.get("function") if isinstance(tool, dict) else None
        holder, where = (inner, ".function") if isinstance(inner, dict) else (tool, "")
        if isinstance(holder, dict) and _may_be_called(holder.get("name"), choice):
            names = [name for name in ("parameters", "input_schema") if isinstance(holder.get(name), dict)]
            yield from ((f"tools[{number}]{where}.{name}", "schema", holder[name]) for name in names)


def _may_be_called(name: Any, choice: Any) -> bool:
    """Return whether `choice` can mean the tool of this name; a choice without a name can mean every tool."""
    inner = choice.get("function", choice) if isinstance(choice, dict) else None
    wanted = inner.get("name") if isinstance(inner, dict) else None
    return wanted is None or wanted == name


def _from_text(value: Any) -> Any:
    """Return the JSON in a text, None when it holds none; other values as they are."""
    if not isinstance(value, str):
        return value
    check_bound("bytes", len(value))
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


# Each check raises BodyError; its `param` is the rest of the path below the field that holds the constraint.


def _check_json(value: Any, meter: SchemaMeter) -> None:
    _check_schema(_from_text(value), meter, "an object, or its text")


def _check_schema(value: Any, meter: SchemaMeter, form: str = "an object") -> None:
    if not isinstance(value, dict):
        raise BodyError(f"must be a JSON schema: {form}.")
    meter.check(value)


def _check_json_object(value: Any, _meter: SchemaMeter) -> None:
    if value is not True:
        raise BodyError("must be true, or be left out.")


def _check_choice(value: Any, meter: SchemaMeter) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise BodyError("must be a list of texts, none of them empty.")
    longest, total = max(map(len, value)), sum(map(len, value))
    if len(value) > MAX_CHOICES or longest > MAX_CHOICE_CHARACTERS or total > MAX_CHOICES_CHARACTERS:
        raise BodyError(
            f"must have at most {MAX_CHOICES:,} choices of {MAX_CHOICE_CHARACTERS:,} characters,"
            f" and {MAX_CHOICES_CHARACTERS:,} characters in total."
        )
    meter.counts["list entries"] += len(value)


def _check_regex(value: Any, meter: SchemaMeter) -> None:
    if not isinstance(value, str) or not value:
        raise BodyError("must be a regular expression.")
    meter.check({"pattern": value})


def _check_grammar(value: Any, meter: SchemaMeter) -> None:
    if not isinstance(value, str) or not value.strip():
        raise BodyError("must be a grammar in Lark or GBNF.")
    if len(value) > MAX_GRAMMAR_CHARACTERS or repetitions(value) > MAX_GRAMMAR_REPETITIONS:
        raise BodyError(
            f"must have at most {MAX_GRAMMAR_CHARACTERS:,} characters, and repetition counts whose product is at most"
            f" {MAX_GRAMMAR_REPETITIONS:,}."
        )
    if "%" in value.replace("%ignore", ""):
        raise BodyError("directives other than %ignore are not accepted: they import other grammars.")
    meter.counts["list entries"] += len(value)


def _check_structural_tag(value: Any, meter: SchemaMeter) -> None:
    """Accept the form with `structures` and `triggers`, the only one that this backend supports."""
    value = _from_text(value)
    lists: list[Any] = [value.get(name) for name in ("structures", "triggers")] if isinstance(value, dict) else [None]
    if not all(isinstance(each, list) and 0 < len(each) <= MAX_TAGS for each in lists):
        raise BodyError(f"must have structures and triggers, at most {MAX_TAGS} of each.")
    for number, each in enumerate(lists[0] + lists[1]):
        tag: Mapping[str, Any] = each if isinstance(each, dict) else {"begin": each, "end": "", "schema": {}}
        texts = (tag.get("begin"), tag.get("end"))
        if not texts[0] or not all(isinstance(text, str) and len(text) <= MAX_CHOICE_CHARACTERS for text in texts):
            raise BodyError(
                f"entry {number} must have begin and end, texts of at most {MAX_CHOICE_CHARACTERS:,} characters."
            )
        try:
            _check_schema(tag.get("schema"), meter)
        except BodyError as error:
            raise BodyError(error.message, f".structures[{number}].schema") from None


_CHECKS: dict[str, Callable[[Any, SchemaMeter], None]] = {
    "schema": _check_schema,
    "json": _check_json,
    "json_object": _check_json_object,
    "choice": _check_choice,
    "regex": _check_regex,
    "grammar": _check_grammar,
    "structural_tag": _check_structural_tag,
}
