"""Whether each value of the profile is one that vLLM's argument takes."""

import re
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from servekit.profile.argument_table import MODALITIES, Argument, engine_arguments, nearest
from servekit.profile.mistakes import Mistakes, shown
from servekit.profile.source import Source
from servekit.profile.values import KeyPath, Lines, Value

_PAIRS: Final = re.compile(r"\w+[=:] *\w+(, *\w+[=:] *\w+)*")
"""How vLLM's older releases took a mapping: `image=3,audio=0`."""

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
    path: KeyPath = (argument.name,)
    key, got = argument.name, value
    for part in details["loc"]:
        inner = (*path, f"[{part}]" if isinstance(part, int) else part)
        if inner in lines:
            path, got = inner, details["input"]
    name = ".".join(path).replace(".[", "[")
    phrase = argument.wanted
    if details["type"] == "extra_forbidden":  # of a limit: no modality, or no size of one
        got = details["loc"][-1]
        known = ("count", *MODALITIES[str(details["loc"][0])]) if len(details["loc"]) > 1 else tuple(MODALITIES)
        phrase = f"{', '.join(known[:-1])} or {known[-1]}"
    elif details["type"] in LIMITS:
        bound, words = LIMITS[details["type"]]
        phrase = f"{words} {details['ctx'][bound]}"
    elif details["type"] == "too_short":
        phrase = "a list with something in it"
    elif argument.kind == "limits" and details["loc"]:
        phrase = "a whole number"
    elif name != key:
        phrase = phrase.rpartition("each item ")[2]
    mistakes.add(lines[path], f"must be {phrase}", key=name, got=shown(got), remedy=_remedy(argument, got))


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
    if isinstance(got, str) and argument.kind in ("json", "limits") and _PAIRS.fullmatch(got):
        return f"write `{{{re.sub('[=:] *', ': ', re.sub(', *', ', ', got))}}}`, with a space after each colon"
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
