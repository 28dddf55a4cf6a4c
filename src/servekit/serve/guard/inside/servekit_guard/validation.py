"""How vLLM's server validates a body: the object the guard has checked, and no further than its first wrong item.

pydantic goes through a whole list and collects every mistake, for each member of a union: 2,000 wrong items of
`/v1/responses` gave 408,001 mistakes and held vLLM 0.20.2's event loop for five seconds.
"""

import importlib
from collections.abc import Iterable
from typing import Any

LISTS = frozenset({"list", "tuple", "set"})


def read_checked_bodies(name: str) -> None:
    """Let Starlette's requests give what the guard left in the scope under `name`: it is parsed once, by one parser."""
    request_class = importlib.import_module("starlette.requests").Request
    read = request_class.json

    async def json(self: Any) -> Any:
        return self.scope[name] if name in self.scope else await read(self)

    request_class.json = json


def stop_at_first_mistakes(routes: Iterable[Any], paths: Iterable[str]) -> None:
    """Rebuild the validators of these routes' bodies so that each list stops at its first wrong item.

    routes: FastAPI's; raises LookupError when one of the `paths` has no body that is validated.
    """
    missing = set(paths)
    for route in routes:
        field = getattr(route, "body_field", None)
        if field is None or getattr(route, "path", None) not in missing:
            continue
        for each in (field, *route.dependant.body_params):
            _rebuild(each._type_adapter)  # noqa: SLF001 - FastAPI has no public way to a route's validator
        missing.discard(route.path)
    if missing:
        raise LookupError(f"no validated body on {', '.join(sorted(missing))}")


def _rebuild(adapter: Any) -> None:
    validator_class = importlib.import_module("pydantic_core").SchemaValidator
    models = []
    for schema in _schemas(adapter.core_schema):
        if schema["type"] in LISTS:
            schema["fail_fast"] = True
        elif schema["type"] == "model" and vars(schema["cls"]).get("__pydantic_complete__"):
            models.append(schema["cls"])
    try:
        for model in models:  # pydantic-core would take a complete model's own validator in place of its schema
            model.__pydantic_complete__ = False
        adapter.validator = validator_class(adapter.core_schema, adapter._config)  # noqa: SLF001
    finally:
        for model in models:
            model.__pydantic_complete__ = True


def _schemas(value: Any) -> Iterable[dict[str, Any]]:
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            if isinstance(value.get("type"), str):
                yield value
            pending.extend(value.values())
        elif isinstance(value, (list, tuple)):
            pending.extend(value)
