"""The profile as a JSON Schema (draft 2020-12), for editors that complete and check YAML."""

from collections.abc import Collection, Mapping
from typing import Any

from servekit import ENGINE_VERSION
from servekit.profile.contract import CLOSED_MODALITIES, CONTRACT
from servekit.profile.engine_args import Argument, engine_arguments
from servekit.profile.reserved import PINNED, RESERVED
from servekit.profile.schema import CARD_KEYS, Card

DIALECT = "https://json-schema.org/draft/2020-12/schema"
HUMAN_INTEGER = {"type": "string", "pattern": r"^([0-9]+[kmgtKMGT]|[0-9]+\.[0-9]+[kmgt])$"}
LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def profile_schema(*, deviate: Collection[str] = ()) -> dict[str, object]:
    """Give the schema of a profile file; the contract's keys in `deviate` are free in it.

    It knows the dashed spelling only, and no rule between keys: `load_profile` decides.
    """
    card = Card.model_json_schema()["properties"]
    properties = {
        name: _property(argument, card) for name, argument in engine_arguments().items() if name not in RESERVED
    }
    held = [key for key in CONTRACT if key not in deviate]
    for key in held:
        properties[key] = {"description": properties[key]["description"]} | _constant(CONTRACT[key])
    return {
        "$schema": DIALECT,
        "title": "servekit profile",
        "description": f"Arguments of vLLM {ENGINE_VERSION} for one dedicated endpoint.",
        "type": "object",
        "properties": properties,
        "required": held,
        "additionalProperties": False,
    }


def _property(argument: Argument, card: Mapping[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": f"vLLM's --{argument.name}" + f" ({argument.group})" * bool(argument.group)
    }
    if argument.default is not None:
        described["default"] = argument.default
    if argument.name in PINNED:
        return described | {"enum": list(PINNED[argument.name][0])}
    if argument.name in CARD_KEYS:
        described["description"] = card[argument.name]["description"]
    if argument.name == "limit-mm-per-prompt":
        kinds = {kind: {"type": "integer", "minimum": 0} for kind in ("image", *CLOSED_MODALITIES)}
        return described | {"type": "object", "properties": kinds, "additionalProperties": False}
    item = _item(argument)
    if argument.many or argument.repeat:
        return described | {"anyOf": [{"type": "array", "items": item, "minItems": 1}, item]}
    return described | item


def _item(argument: Argument) -> dict[str, Any]:
    if argument.choices:
        return {"enum": list(argument.choices)}
    bounds = {LIMITS[name]: limit for name, limit in argument.bounds.items()}
    positive = {"type": "integer", "minimum": 1}
    shapes: dict[str, dict[str, Any]] = {
        "bool": {"type": "boolean"},
        "switch": {"type": "boolean"},
        "int": {"type": "integer"} | bounds,
        "human_int": {"anyOf": [{"type": "integer"} | bounds, HUMAN_INTEGER]},
        "human_int_or_auto": {"anyOf": [positive, HUMAN_INTEGER, {"enum": ["auto", -1]}]},
        "float": {"type": "number"} | bounds,
        "json": {"type": ["array" if isinstance(argument.default, list) else "object", "string"]},
        "json_or_str": {"type": ["object", "string"]},
        "str": {"type": "string"},
    }
    return shapes[argument.kind]


def _constant(wanted: object) -> dict[str, Any]:
    if not isinstance(wanted, Mapping):
        return {"const": wanted}
    items = {**wanted, **dict.fromkeys(CLOSED_MODALITIES, 0)}
    return {
        "type": "object",
        "properties": {name: {"const": count} for name, count in items.items()},
        "required": list(items),
        "additionalProperties": False,
    }
