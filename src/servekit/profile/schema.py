"""What a value of the profile must be: the card's keys by a model of their own, all others by vLLM's table."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from servekit.profile.engine_args import (
    Argument,
    HumanInteger,
    annotation,
    engine_arguments,
    nearest,
    parsed_json,
)
from servekit.profile.mistakes import Mistakes, shown
from servekit.profile.source import Source
from servekit.profile.values import Lines, Value

KvCacheDtype = Literal[
    "auto",
    "bfloat16",
    "float16",
    "fp8",
    "fp8_ds_mla",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_inc",
    "fp8_per_token_head",
    "int8_per_token_head",
    "nvfp4",
    "turboquant_3bit_nc",
    "turboquant_4bit_nc",
    "turboquant_k3v4_nc",
    "turboquant_k8v4",
]
Positive = Field(gt=0)
Items = Annotated[int, Strict(), Field(ge=0)]
"""How many items of one modality a prompt may hold."""


class Card(BaseModel):
    """The keys of the model card's profile. A key that is None is left to vLLM."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
    )

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of the GPU's memory that the engine may use, above 0 and at most 1."
    )
    max_model_len: Annotated[HumanInteger, Positive] | Literal["auto", -1] | None = Field(
        None, description="Longest prompt and answer together, in tokens; `auto` is the longest that fits."
    )
    max_num_seqs: Annotated[int, Positive] | None = Field(
        None, description="Most requests in one step of the engine; the others wait."
    )
    max_num_batched_tokens: Annotated[HumanInteger, Positive] | None = Field(
        None, description="Most tokens in one step of the engine, prompts and answers together."
    )
    enable_prefix_caching: bool | None = Field(
        None, description="Keep the cache of a prompt's beginning for the next request that begins the same."
    )
    enable_chunked_prefill: bool | None = Field(
        None, description="Cut long prompts into pieces, so that running answers go on between them."
    )
    quantization: str | None = Field(None, description="How the checkpoint's weights are compressed.", min_length=1)
    kv_cache_dtype: KvCacheDtype | None = Field(
        None, description="The type of the attention cache; fp8_e4m3 needs half the memory of bfloat16."
    )
    limit_mm_per_prompt: (
        Annotated[dict[Literal["image", "audio", "video"], Items], BeforeValidator(parsed_json)] | None
    ) = Field(None, description="Most items of each kind in one request; a kind left out is all but unlimited.")


CARD_KEYS: Mapping[str, str] = {name.replace("_", "-"): name for name in Card.model_fields}
"""The card's keys as the file spells them, with the names of their fields."""


def checked_values(source: Source, mistakes: Mistakes) -> dict[str, Value]:
    """Give the values of `source`, of known keys only, that are what vLLM takes, normalised and in file order.

    Every other one is noted in `mistakes`.
    """
    table = engine_arguments()
    wanted = {key: value for key, value in source.values.items() if key not in source.broken}
    good: dict[str, Value] = {}
    bad: list[tuple[str, ErrorDetails]] = []
    values, errors = _card_values({key: value for key, value in wanted.items() if key in CARD_KEYS})
    good |= values
    bad += errors
    for key in wanted.keys() - CARD_KEYS.keys():
        try:
            good[key] = TypeAdapter(annotation(table[key])).validate_python(wanted[key])
        except ValidationError as error:
            bad.append((key, error.errors(include_url=False)[0]))
    for key, details in bad:
        _note(table[key], wanted[key], details, source.lines, mistakes)
    for key in [key for key in good if _note_unsayable(table[key], good[key], source.lines, mistakes)]:
        del good[key]
    return {key: good[key] for key in wanted if key in good}


def _card_values(wanted: dict[str, Value]) -> tuple[dict[str, Value], list[tuple[str, ErrorDetails]]]:
    try:
        card = Card.model_validate(wanted)
    except ValidationError as error:
        bad: dict[str, ErrorDetails] = {}
        for details in error.errors(include_url=False):
            bad.setdefault(str(details["loc"][0]), details)
        rest = {key: value for key, value in wanted.items() if key not in bad}
        return _card_values(rest)[0], list(bad.items())
    values: dict[str, Value] = card.model_dump(by_alias=True, exclude_unset=True)
    if values.get("max-model-len") == -1:
        values["max-model-len"] = "auto"
    return values, []


def _note(argument: Argument, value: Value, details: ErrorDetails, lines: Lines, mistakes: Mistakes) -> None:
    """Note that `value` is not what `argument` takes."""
    key = argument.name
    line, name, got = lines[key,], key, value
    for part in details["loc"]:
        inner = f"[{part}]" if isinstance(part, int) else part
        if (key, inner) in lines:
            line, name, got = lines[key, inner], f"{key}.{inner}".replace(".[", "["), details["input"]
            break
    phrase = argument.wanted
    if "[key]" in details["loc"]:
        got = details["input"]
        phrase = "image, audio or video"
    elif limit := _limit(details):
        phrase = limit
    elif details["type"] == "too_short":
        phrase = "a list with something in it"
    elif key == "limit-mm-per-prompt" and isinstance(value, dict):
        phrase = "a whole number"
    elif name != key:
        phrase = phrase.rpartition("each item ")[2]
    mistakes.add(line, f"must be {phrase}", key=name, got=shown(got), remedy=_remedy(argument, got))


def _limit(details: ErrorDetails) -> str:
    words = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if details["type"] not in words:
        return ""
    name, phrase = words[details["type"]]
    return f"{phrase} {details['ctx'][name]}"


def _remedy(argument: Argument, got: Any) -> str:
    if argument.choices and isinstance(got, str):
        guess = nearest(got, {str(choice): argument for choice in argument.choices})
        return f"did you mean {guess}?" if guess else ""
    if isinstance(got, str) and argument.kind in ("int", "human_int", "human_int_or_auto", "float"):
        return "write the number without quotes" if got.replace(".", "", 1).isdigit() else ""
    if argument.kind in ("bool", "switch"):
        return f"write {got.lower()} without quotes" if str(got).lower() in ("true", "false") else ""
    if argument.kind == "str" and isinstance(got, bool | int | float):
        return f'write "{shown(got)}" in quotes'
    return ""


def _note_unsayable(argument: Argument, value: Value, lines: Lines, mistakes: Mistakes) -> bool:
    """Note a value that vLLM would take for something else once it stands on its command line."""
    key = argument.name
    items = value if isinstance(value, list) else [value]
    if argument.optional and any(item in ("", "None") for item in items):
        remedy = "leave the key out"
        mistakes.add(lines[key,], "vLLM reads this as no value", key=key, got=shown(value), remedy=remedy)
        return True
    if argument.many and any(str(item).startswith("-") for item in items):
        message = "has an item that vLLM would take for another argument"
        mistakes.add(lines[key,], message, key=key, got=shown(value), remedy="start no item with -")
        return True
    if argument.fields and isinstance(value, dict) and (unknown := set(value) - set(argument.fields)):
        for name in sorted(unknown):
            guess = nearest(name.replace("_", "-"), {f.replace("_", "-"): argument for f in argument.fields})
            remedy = f"did you mean {guess.replace('-', '_')}?" if guess else "take it out"
            line = lines.get((key, name), lines[key,])
            mistakes.add(line, f"is no key of {key}", key=f"{key}.{name}", remedy=remedy)
        return True
    return False
