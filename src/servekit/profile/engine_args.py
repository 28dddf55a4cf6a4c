"""Every argument that `vllm serve` 0.20.2 takes, from a table written by vLLM's own parser.

The table, `engine_args.json`, is made by scripts/engine_args.py (`make engine-args`); nothing here imports vLLM.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, StrictBool, StrictStr

from servekit.profile.values import Value

TABLE = Path(__file__).with_name("engine_args.json")

HUMAN_INTEGER = re.compile(r"(\d+)([kmgtKMGT])|(\d+\.\d+)([kmgt])")
POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of `vllm serve`, named without its dashes."""

    name: str
    kind: str
    """bool, switch (a flag without a --no- form), int, human_int (also as 20k), human_int_or_auto, float, str,
    json, json_or_str."""
    many: bool = False
    """It takes one or more values after one flag."""
    repeat: bool = False
    """It takes one value, and may be given again."""
    optional: bool = False
    """vLLM reads the texts "None" and "" as no value at all."""
    choices: tuple[Value, ...] = ()
    fields: tuple[str, ...] = ()
    """The keys that a JSON argument may have; empty where vLLM leaves them open."""
    bounds: Mapping[str, float] = field(default_factory=dict)
    """Limits by their pydantic names: gt, ge, lt, le."""
    aliases: tuple[str, ...] = ()
    default: Value = None
    """None also where vLLM decides later: from the model, the platform or the other arguments."""
    group: str = ""

    @property
    def wanted(self) -> str:
        """What the argument takes, in words that follow "must be"."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        phrase = {
            "bool": "true or false",
            "switch": "true or false",
            "int": "a whole number",
            "human_int": "a whole number, also as 20k",
            "human_int_or_auto": "a whole number, also as 20k, or auto",
            "float": "a number",
            "json": "a list" if isinstance(self.default, list) else "a mapping",
            "json_or_str": "a mapping or text",
            "str": "text",
        }[self.kind]
        return f"a list, each item {phrase}" if self.many or self.repeat else phrase


@cache
def engine_arguments() -> Mapping[str, Argument]:
    """Every argument by its name, sorted; read on first use."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["arguments"]
    sequences = ("choices", "fields", "aliases")
    arguments = {}
    for name, row in rows.items():
        described: dict[str, Any] = {key: tuple(value) if key in sequences else value for key, value in row.items()}
        arguments[name] = Argument(name, **described)
    return arguments


def nearest(word: str, names: Mapping[str, Argument] | None = None) -> str:
    """Name the argument that `word` most likely means, or give an empty text.

    Knows other spellings, vLLM's short forms (`tp`) and beginnings of one name (vLLM's parser would take those).
    """
    names = engine_arguments() if names is None else names
    sought = word.lower().strip("-").replace("_", "-").partition(".")[0]
    if sought in names:
        return sought
    for argument in names.values():
        if f"-{sought}" in argument.aliases:
            return argument.name
    begun = [name for name in names if name.startswith(sought)] if sought else []
    if len(begun) == 1:
        return begun[0]
    return next(iter(get_close_matches(sought, names, n=1, cutoff=0.7)), "")


def annotation(argument: Argument) -> Any:
    """Give the pydantic type that takes what `argument` takes, and normalises it."""
    item: Any = Literal[argument.choices] if argument.choices else TYPES[argument.kind]
    if argument.kind == "json" and isinstance(argument.default, list):
        item = Annotated[list[Value], BeforeValidator(parsed_json)]
    if argument.bounds:
        bounds: dict[str, Any] = dict(argument.bounds)
        item = Annotated[item, Field(**bounds)]
    if argument.many or argument.repeat:
        return Annotated[list[item], Field(min_length=1), BeforeValidator(_as_list)]
    return item


def human_integer(value: object) -> object:
    """Expand `20k` to 20,000 and `20K` to 20,480, as vLLM does; leave everything else as it is."""
    match = HUMAN_INTEGER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    number, suffix = match[1] or match[3], match[2] or match[4]
    base = 1000 if suffix.islower() else 1024
    return int(float(number) * base ** POWERS[suffix.lower()])


def parsed_json(value: object) -> object:
    """Parse a text that holds JSON, the way such arguments are written on vLLM's command line."""
    if not (isinstance(value, str) and value.lstrip().startswith(("{", "["))):
        return value
    try:
        return json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return value


def _refuse_constant(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity are no JSON


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


HumanInteger = Annotated[int, Strict(), BeforeValidator(human_integer)]
"""A whole number that may be written as vLLM takes it, such as `20k`."""

TYPES: Mapping[str, Any] = {
    "bool": StrictBool,
    "switch": StrictBool,
    "int": Annotated[int, Strict()],
    "human_int": HumanInteger,
    "human_int_or_auto": HumanInteger | Literal["auto"],
    "float": Annotated[float, Strict()],
    "json": Annotated[dict[str, Value], BeforeValidator(parsed_json)],
    "json_or_str": Annotated[dict[str, Value] | StrictStr, BeforeValidator(parsed_json)],
    "str": StrictStr,
}
"""The pydantic type of each kind."""
