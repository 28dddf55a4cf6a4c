"""The profile as a JSON Schema (draft 2020-12), for editors that complete and check YAML."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.profile.argument_table import KINDS, Argument, engine_arguments
from servekit.profile.contract import CONTRACT
from servekit.profile.reserved import PINNED, RESERVED

BOUNDS: Final = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}

MODEL_CARD_KEYS: Final[Mapping[str, str]] = {
    "gpu-memory-utilization": "Share of the GPU's memory that the engine may use, above 0 and at most 1.",
    "max-model-len": "Longest prompt and answer together, in tokens; `auto` is the longest that fits.",
    "max-num-seqs": "Most requests in one step of the engine; the others wait.",
    "max-num-batched-tokens": "Most tokens in one step of the engine, prompts and answers together.",
    "enable-prefix-caching": "Keep the cache of a prompt's beginning for the next request that begins the same.",
    "enable-chunked-prefill": "Cut long prompts into pieces, so that running answers go on between them.",
    "quantization": "How the checkpoint's weights are compressed.",
    "kv-cache-dtype": "The type of the attention cache; fp8_e4m3 needs half the memory of bfloat16.",
    "limit-mm-per-prompt": "Most items of each kind in one request; a kind that is not listed is all but unlimited.",
}
"""The keys of the model card's profile, described for this endpoint."""


def profile_schema(*, deviate: Collection[str] = ()) -> dict[str, object]:
    """Return the schema of a profile file; the contract's keys in `deviate` are free in it.

    It knows the dashed spelling only, and no rule between keys: `load_profile` decides.
    """
    properties = {name: _property(row) for name, row in engine_arguments().items() if name not in RESERVED}
    held = [key for key in CONTRACT if key not in deviate]
    for key in held:
        properties[key] = {"description": properties[key]["description"]} | _constant(CONTRACT[key])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "servekit profile",
        "description": f"Arguments of vLLM {ENGINE_VERSION} for one dedicated endpoint.",
        "type": "object",
        "properties": properties,
        "required": held,
        "additionalProperties": False,
    }


def _property(argument: Argument) -> dict[str, Any]:
    name, group = argument.name, f" ({argument.group})" if argument.group else ""
    described: dict[str, Any] = {"description": MODEL_CARD_KEYS.get(name, f"vLLM's --{name}{group}")}
    if argument.default is not None:
        described["default"] = argument.default
    if name in PINNED:
        return described | {"enum": list(PINNED[name][0])}
    item = _item(argument)
    if argument.many or argument.repeat:
        return described | {"anyOf": [{"type": "array", "items": item, "minItems": 1}, item]}
    return described | item


def _item(argument: Argument) -> dict[str, Any]:
    if argument.choices:
        return {"enum": list(argument.choices)}
    schema = dict(KINDS[argument.kind].schema)
    bounds = {BOUNDS[name]: limit for name, limit in argument.bounds.items()}
    if "anyOf" not in schema:
        return schema | bounds
    return {"anyOf": [each | bounds if each.get("type") == "integer" else each for each in schema["anyOf"]]}


def _constant(wanted: object) -> dict[str, Any]:
    if not isinstance(wanted, Mapping):
        return {"const": wanted}
    properties = {name: {"const": count} for name, count in wanted.items()}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
