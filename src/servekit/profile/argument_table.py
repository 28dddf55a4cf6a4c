"""Every argument that `vllm serve` 0.20.2 takes, from a table that vLLM's own parser wrote.

scripts/engine_args.py (`make engine-args`) writes the table, `argument_table.json`; nothing here imports vLLM.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Strict,
    StrictBool,
    StrictStr,
    Tag,
    with_config,
)
from typing_extensions import TypedDict

from servekit.profile.values import Value

TABLE: Final = Path(__file__).with_name("argument_table.json")
HUMAN_INTEGER: Final = re.compile(r"\d+[kmgtKMGT]|\d+\.\d+[kmgt]")
POWERS: Final = {"k": 1, "m": 2, "g": 3, "t": 4}
MODALITIES: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("width", "height"),
    "audio": ("length",),
    "video": ("num_frames", "width", "height"),
}
"""What limit-mm-per-prompt may say of each modality beside its `count`: the size of the items that the start rehearses
(vLLM 0.20.2, config/multimodal.py)."""
_CLOSE: Final = 0.82
"""Below this likeness a suggestion is a guess: of `enable-reasoning` as `enable-prefix-caching`, it is 0.7."""


@dataclass(frozen=True)
class Kind:
    """What an argument of one kind takes, for pydantic, for JSON Schema and in words."""

    type: Any
    schema: Mapping[str, Any]
    phrase: str
    """Follows "must be"."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of `vllm serve`, named without its dashes."""

    name: str
    kind: str
    """A key of KINDS."""
    many: bool = False
    """It takes one or more values after one flag."""
    repeat: bool = False
    """It takes one value, and may be given again."""
    optional: bool = False
    """vLLM reads the texts "None" and "" as no value."""
    choices: tuple[Value, ...] = ()
    fields: tuple[str, ...] = ()
    """The keys that a JSON argument may have; empty where vLLM leaves them open."""
    names: tuple[str, ...] = ()
    """What vLLM itself knows by name where its parser takes any text; a plugin may add to them."""
    bounds: Mapping[str, Any] = field(default_factory=dict)
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
        phrase = KINDS[self.kind].phrase
        return f"a list, each item {phrase}" if self.many or self.repeat else phrase

    @property
    def type(self) -> Any:
        """The pydantic type that checks the argument's value, and normalises it."""
        item: Any = Literal[self.choices] if self.choices else KINDS[self.kind].type
        if self.bounds:
            item = Annotated[item, Field(**self.bounds)]
        if self.many or self.repeat:
            as_list = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
            return Annotated[list[item], Field(min_length=1), as_list]
        return item


@cache
def engine_arguments() -> Mapping[str, Argument]:
    """Return every argument by its name, sorted; the first call reads the table."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: _argument(name, row) for name, row in table["arguments"].items()}


def nearest(word: str, names: Iterable[str]) -> str:
    """Return the one of `names` that `word` most likely means, or an empty text.

    Knows other spellings, vLLM's short forms (`tp`) and beginnings of one name (vLLM's parser takes those).
    """
    known = {name.replace("_", "-"): name for name in names}
    sought = word.lower().strip("-").replace("_", "-").partition(".")[0].removeprefix("no-")
    begun = [name for name in known if name.startswith(sought)] if len(sought) > 1 else []
    short = [name for name, row in engine_arguments().items() if f"-{sought}" in row.aliases and name in known]
    close = begun if len(begun) == 1 else get_close_matches(sought, known, n=1, cutoff=_CLOSE)
    return next((known[name] for name in ([sought] if sought in known else short or close)), "")


def human_integer(value: object) -> object:
    """Expand `20k` to 20,000 and `20K` to 20,480, as vLLM does; return everything else as it is."""
    match = HUMAN_INTEGER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    number, suffix = match[0][:-1], match[0][-1]
    return int(float(number) * (1000 if suffix.islower() else 1024) ** POWERS[suffix.lower()])


def parsed_json(value: object) -> object:
    """Parse a text that holds JSON, the way such arguments are written on vLLM's command line."""
    if not (isinstance(value, str) and value.lstrip().startswith(("{", "["))):
        return value
    try:
        return json.loads(value, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return value


def _argument(name: str, row: dict[str, Any]) -> Argument:
    described: dict[str, Any] = {
        # a default stays a list, as a value of the profile is one
        key: tuple(value) if isinstance(value, list) and key != "default" else value
        for key, value in row.items()
    }
    return Argument(name, **described)


def _reject_constant(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity are not JSON


def _automatic_length(value: object) -> object:
    return "auto" if type(value) is int and value == -1 else value


HUMAN: Final = Annotated[int, Strict(), BeforeValidator(human_integer)]
HUMAN_SCHEMA: Final = {"type": "string", "pattern": r"^([0-9]+[kmgtKMGT]|[0-9]+\.[0-9]+[kmgt])$"}
COUNT: Final = Annotated[int, Strict(), Field(ge=0)]
SIZE: Final = Annotated[int, Strict(), Field(gt=0)]


def _mapping(keys: Mapping[str, Any]) -> Any:
    """Return the type of a mapping that may have these keys and no other."""
    described: Any = TypedDict("described", keys, total=False)  # type: ignore[misc]
    return with_config(extra="forbid")(described)


LIMITS: Final = _mapping(
    {
        modality: Annotated[
            Annotated[COUNT, Tag("number")]
            | Annotated[_mapping({"count": COUNT} | dict.fromkeys(sizes, SIZE)), Tag("mapping")],
            Discriminator(lambda value: "mapping" if isinstance(value, dict) else "number"),
        ]
        for modality, sizes in MODALITIES.items()
    }
)

_COUNT: Final = {"type": "integer", "minimum": 0}
_SIZES: Final = {name: {key: {"type": "integer", "minimum": 1} for key in sizes} for name, sizes in MODALITIES.items()}


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


KINDS: Final[Mapping[str, Kind]] = {
    "bool": Kind(StrictBool, {"type": "boolean"}, "true or false"),
    # a flag without a --no- form
    "switch": Kind(StrictBool, {"type": "boolean"}, "true or false"),
    "int": Kind(Annotated[int, Strict()], {"type": "integer"}, "a whole number"),
    # human_int takes 20k too; human_int_or_auto also takes -1 and auto, for the longest length that fits
    "human_int": Kind(HUMAN, {"anyOf": [{"type": "integer"}, HUMAN_SCHEMA]}, "a whole number, also as 20k"),
    "human_int_or_auto": Kind(
        Annotated[Annotated[HUMAN, Field(gt=0)] | Literal["auto"], BeforeValidator(_automatic_length)],
        {"anyOf": [{"type": "integer", "minimum": 1}, HUMAN_SCHEMA, {"enum": ["auto", -1]}]},
        "a whole number, also as 20k, or auto",
    ),
    "float": Kind(Annotated[float, Strict()], {"type": "number"}, "a number"),
    "json": Kind(
        Annotated[dict[str, Value], BeforeValidator(parsed_json)], {"type": ["object", "string"]}, "a mapping"
    ),
    "json_list": Kind(Annotated[list[Value], BeforeValidator(parsed_json)], {"type": ["array", "string"]}, "a list"),
    "json_or_str": Kind(
        Annotated[dict[str, Value] | StrictStr, BeforeValidator(parsed_json)],
        {"type": ["object", "string"]},
        "a mapping or text",
    ),
    "str": Kind(StrictStr, {"type": "string"}, "text"),
    "limits": Kind(
        Annotated[LIMITS, BeforeValidator(parsed_json)],
        _closed({name: {"anyOf": [_COUNT, _closed({"count": _COUNT} | each)]} for name, each in _SIZES.items()}),
        "a mapping",
    ),
}
"""One row for each kind of argument."""
