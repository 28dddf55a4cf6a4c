"""Structured output: every place of a request where a grammar comes in, and which of them the engine is given.

vLLM 0.20.2 compiles a grammar in EngineCore for each sequence, with one backend (`--structured-outputs-config`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .bounds import BOUNDS
from .patterns import repetitions
from .problem import Problem
from .schemas import SchemaMeter
from .sequences import sequences_of

EXTRA_KINDS = ("regex", "grammar", "structural_tag")
"""Refused unless the operator's setting names them."""
MAX_CHOICES = 1_000
MAX_CHOICE_CHARACTERS = 1_000
MAX_CHOICES_CHARACTERS = 32_768
MAX_GRAMMAR_CHARACTERS = 4_096
MAX_GRAMMAR_REPETITIONS = 1_000
MAX_TAGS = 16
MAX_WEIGHT = 4_096
"""Of a request's grammars, times its sequences: vLLM compiles anew for every prompt and for each of `n`."""
PATTERN_WEIGHT = 50
"""What a pattern adds to that: EngineCore fills its row's mask in 1 ms and more for every token, not in 0.05."""

_FIELD = "structured_outputs"
_KINDS = ("json", "json_object", "choice", *EXTRA_KINDS)
_OPTIONS = ("disable_any_whitespace", "disable_additional_properties")
_FREE_TOOL_CHOICES = (None, "none", "auto")
Found = tuple[str, str, Any]
"""Where a constraint was found, its kind (one of vLLM's, or `schema`), and its value."""


def check_structured(
    fields: dict[str, Any], allowed: frozenset[str], weigh: Callable[[int], object] = int
) -> Problem | None:
    """Return why the body's structured output must not reach the engine, or None.

    fields: the JSON body of any route. allowed: the kinds of EXTRA_KINDS that the operator has opened. weigh: called
    with the weight of all its sequences where there is structured output in it.
    """
    try:
        weight = _check(fields, allowed)
    except _RefusedError as error:
        return error.problem
    if weight:
        weigh(weight)
    return None


def _check(fields: dict[str, Any], allowed: frozenset[str]) -> int:
    """Return the request's weight; raises _RefusedError for the first thing that is wrong."""
    found = [*_params(fields.get(_FIELD)), *_response_format(fields), *_text_format(fields.get("text"))]
    if len(found) > 1:
        raise _RefusedError(found[0][0], "one structured output constraint at a time: take the others out.")
    meter = SchemaMeter()
    for where, kind, value in (*found, *_forced_tools(fields)):
        if kind in EXTRA_KINDS and kind not in allowed:
            raise _RefusedError(where, f"{kind} is not open on this server (setting SERVEKIT_STRUCTURED_OUTPUTS).")
        _CHECKS[kind](where, value, meter)
    sequences = sequences_of(fields)
    weight = meter.weight + PATTERN_WEIGHT * meter.counts["patterns, formats and numeric ranges"]
    if weight > 1 and sequences > 1 and weight * sequences > MAX_WEIGHT:
        message = f"too large for {sequences} sequences: {weight} units each, {MAX_WEIGHT:,} in all at most."
        raise _RefusedError(found[0][0] if found else "tools", message)
    return max(1, weight) * sequences if found or meter.weight else 0


class _RefusedError(Exception):
    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(where, message if message.startswith(where) else f"{where}: {message}")


def _params(params: Any) -> Iterator[Found]:
    """Give vLLM's own field; its parser lets false and empty members through, and the engine ends on them."""
    if params is None:
        return
    if not isinstance(params, dict):
        raise _RefusedError(_FIELD, f"must be an object with one of {', '.join(_KINDS)}.")
    given = {name: value for name, value in params.items() if value is not None and name not in _OPTIONS}
    for name, value in given.items():
        where = f"{_FIELD}.{name}"
        if name == "whitespace_pattern":
            raise _RefusedError(where, "has no effect with this server's backend: take it out.")
        if name not in _KINDS:
            raise _RefusedError(where, f"is not a kind of structured output: use one of {', '.join(_KINDS)}.")
        yield where, name, value
    if not given:
        raise _RefusedError(_FIELD, f"must have one of {', '.join(_KINDS)}.")


def _response_format(fields: dict[str, Any]) -> Iterator[Found]:
    value = fields.get("response_format")
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object":
        yield "response_format", kind, True
    elif kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        yield "response_format.json_schema.schema", "schema", schema
    elif kind == "structural_tag":
        yield "response_format", kind, value
    elif kind != "text":
        raise _RefusedError("response_format", "must be an object of type text, json_object or json_schema.")


def _text_format(text: Any) -> Iterator[Found]:
    """Give the format of the Responses API; vLLM 0.20.2 makes a grammar of `json_schema` only."""
    form = text.get("format") if isinstance(text, dict) else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        yield "text.format.schema", "schema", form.get("schema", form.get("schema_"))


def _forced_tools(fields: dict[str, Any]) -> Iterator[Found]:
    """Give the parameters of tools the model must call: a tool parser makes a grammar of them (`adjust_request`)."""
    choice, tools = fields.get("tool_choice"), fields.get("tools")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind in _FREE_TOOL_CHOICES or not isinstance(tools, list):
        return
    for number, tool in enumerate(tools):
        where, holder = f"tools[{number}]", tool
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
            where, holder = f"{where}.function", tool["function"]
        if isinstance(holder, dict) and _is_called(holder.get("name"), choice):
            for name in ("parameters", "input_schema"):
                if isinstance(holder.get(name), dict):
                    yield f"{where}.{name}", "schema", holder[name]


def _is_called(name: Any, choice: Any) -> bool:
    """Tell whether a tool of this name may be what `choice` names; one that names none may mean each."""
    inner = choice.get("function", choice) if isinstance(choice, dict) else None
    wanted = inner.get("name") if isinstance(inner, dict) else None
    return wanted is None or wanted == name


def _check_json(where: str, value: Any, meter: SchemaMeter) -> None:
    if isinstance(value, str):
        if len(value) > BOUNDS["bytes"]:
            raise _RefusedError(where, f"the schema is too large: at most {BOUNDS['bytes']:,} bytes.")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _RefusedError(where, "must be a JSON schema: an object, or its text.") from None
    _check_schema(where, value, meter)


def _check_schema(where: str, value: Any, meter: SchemaMeter) -> None:
    if not isinstance(value, dict):
        raise _RefusedError(where, "must be a JSON schema: an object.")
    if problem := meter.check(value, where):
        raise _RefusedError(problem[0] or where, problem[1])


def _check_json_object(where: str, value: Any, _meter: SchemaMeter) -> None:
    if value is not True:
        raise _RefusedError(where, "must be true, or be left out.")


def _check_choice(where: str, value: Any, meter: SchemaMeter) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise _RefusedError(where, "must be a list of texts, none of them empty.")
    longest, together = max(map(len, value)), sum(map(len, value))
    if len(value) > MAX_CHOICES or longest > MAX_CHOICE_CHARACTERS or together > MAX_CHOICES_CHARACTERS:
        message = f"at most {MAX_CHOICES:,} choices of {MAX_CHOICE_CHARACTERS:,} characters"
        raise _RefusedError(where, f"{message}, {MAX_CHOICES_CHARACTERS:,} in all.")
    meter.add("list entries", len(value))


def _check_regex(where: str, value: Any, meter: SchemaMeter) -> None:
    if not isinstance(value, str) or not value:
        raise _RefusedError(where, "must be a regular expression.")
    _check_schema(where, {"pattern": value}, meter)


def _check_grammar(where: str, value: Any, meter: SchemaMeter) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _RefusedError(where, "must be a grammar in Lark's or GBNF's form.")
    if len(value) > MAX_GRAMMAR_CHARACTERS or repetitions(value) > MAX_GRAMMAR_REPETITIONS:
        message = f"at most {MAX_GRAMMAR_CHARACTERS:,} characters, with repetition counts whose product is at most"
        raise _RefusedError(where, f"{message} {MAX_GRAMMAR_REPETITIONS:,}.")
    if "%" in value.replace("%ignore", ""):
        raise _RefusedError(where, "directives other than %ignore are not accepted: they bring other grammars in.")
    meter.add("list entries", len(value))


def _check_structural_tag(where: str, value: Any, meter: SchemaMeter) -> None:
    """Accept the form with `structures` and `triggers`, the only one that this backend has."""
    if isinstance(value, str) and len(value) <= BOUNDS["bytes"]:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    structures, triggers = (value.get("structures"), value.get("triggers")) if isinstance(value, dict) else (None, None)
    if not isinstance(structures, list) or not isinstance(triggers, list):
        structures, triggers = [], []
    if not 0 < len(structures) <= MAX_TAGS or not 0 < len(triggers) <= MAX_TAGS:
        raise _RefusedError(where, f"must have structures and triggers, at most {MAX_TAGS} of each.")
    for number, each in enumerate((*structures, *triggers)):
        tag: Mapping[str, Any] = each if isinstance(each, dict) else {"begin": each, "end": "", "schema": {}}
        texts = (tag.get("begin"), tag.get("end"))
        if not texts[0] or not all(isinstance(text, str) and len(text) <= MAX_CHOICE_CHARACTERS for text in texts):
            raise _RefusedError(
                where, f"entry {number} must have begin and end, texts of {MAX_CHOICE_CHARACTERS:,} at most."
            )
        _check_schema(f"{where}.structures[{number}].schema", tag.get("schema"), meter)


_CHECKS = {
    "schema": _check_schema,
    "json": _check_json,
    "json_object": _check_json_object,
    "choice": _check_choice,
    "regex": _check_regex,
    "grammar": _check_grammar,
    "structural_tag": _check_structural_tag,
}
