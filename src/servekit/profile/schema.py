"""Whether each value of the profile is one that vLLM's argument takes."""

from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from servekit.profile.argument_table import MODALITIES, Argument, engine_arguments, nearest
from servekit.profile.mistakes import Mistakes, shown
from servekit.profile.source import Source
from servekit.profile.values import Lines, Value

LIMITS: Final = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def checked_values(source: Source, mistakes: Mistakes) -> dict[str, Value]:
    """Return the values of `source`, whose keys are all known, that vLLM takes: normalised and in file order.

    Adds a mistake for every other one.
    """
    good: dict[str, Value] = {}
    for key, value in source.values.items():
        if key in source.broken:
            continue
        argument = engine_arguments()[key]
        try:
            checked: Value = TypeAdapter(argument.type).validate_python(value)
        except ValidationError as error:
            _add_mistake(argument, value, error.errors(include_url=False)[0], source.lines, mistakes)
        else:
            if not _is_misread(argument, checked, source.lines, mistakes):
                good[key] = checked
    return good


def _add_mistake(argument: Argument, value: Value, details: ErrorDetails, lines: Lines, mistakes: Mistakes) -> None:
    key, name, got = argument.name, argument.name, value
    line = lines[key,]
    for part in details["loc"]:
        inner = f"[{part}]" if isinstance(part, int) else part
        if (key, inner) in lines:
            line, name, got = lines[key, inner], f"{key}.{inner}".replace(".[", "["), details["input"]
            break
    phrase = argument.wanted
    if "[key]" in details["loc"]:
        got, phrase = details["input"], f"{', '.join(MODALITIES[:-1])} or {MODALITIES[-1]}"
    elif details["type"] in LIMITS:
        bound, words = LIMITS[details["type"]]
        phrase = f"{words} {details['ctx'][bound]}"
    elif details["type"] == "too_short":
        phrase = "a list with something in it"
    elif argument.kind == "limits" and isinstance(value, dict):
        phrase = "a whole number"
    elif name != key:
        phrase = phrase.rpartition("each item ")[2]
    mistakes.add(line, f"must be {phrase}", key=name, got=shown(got), remedy=_remedy(argument, got))


def _remedy(argument: Argument, got: Any) -> str:
    if argument.choices and isinstance(got, str):
        guess = nearest(got, map(str, argument.choices))
        return f"did you mean {guess}?" if guess else ""
    if isinstance(got, str) and argument.kind in ("int", "human_int", "human_int_or_auto", "float"):
        return "write the number without quotes" if got.replace(".", "", 1).isdigit() else ""
    if argument.kind in ("bool", "switch"):
        return f"write {got.lower()} without quotes" if str(got).lower() in ("true", "false") else ""
    if argument.kind == "str" and isinstance(got, bool | int | float):
        return f'write "{shown(got)}" in quotes'
    return ""


def _is_misread(argument: Argument, value: Value, lines: Lines, mistakes: Mistakes) -> bool:
    """Whether vLLM would read this value as something else on its command line; if so, add that to `mistakes`."""
    key = argument.name
    items = value if isinstance(value, list) else [value]
    message = remedy = ""
    if argument.optional and any(item in ("", "None") for item in items):
        message, remedy = "vLLM reads this as no value", "leave the key out"
    elif argument.many and any(str(item).startswith("-") for item in items):
        message, remedy = "has an item that vLLM would take for another argument", "start no item with -"
    if message:
        mistakes.add(lines[key,], message, key=key, got=shown(value), remedy=remedy)
        return True
    unknown = sorted(set(value) - set(argument.fields)) if argument.fields and isinstance(value, dict) else []
    for name in unknown:
        guess = nearest(name, [known.replace("_", "-") for known in argument.fields]).replace("-", "_")
        remedy = f"did you mean {guess}?" if guess else "take it out"
        mistakes.add(lines.get((key, name), lines[key,]), f"is not a key of {key}", key=f"{key}.{name}", remedy=remedy)
    return bool(unknown)
