"""Write the table of every field of the request models on vLLM's allowed routes, nested ones too.

usage: .venv-engine/bin/python scripts/request_fields.py [--check] [FILE]

Run it with the engine's Python, never with servekit's, because it imports vLLM. The guard has a verdict on each of
these fields (`servekit_guard/body/fields.py`); a test fails if one is missing. `--check` writes nothing and exits
with 1 if FILE differs from what this vLLM gives.
"""

import dataclasses
import json
import re
import sys
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent.parent / "docs" / "request_fields.json"
MODELS = {
    "/v1/chat/completions": "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest",
    "/v1/completions": "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
    "/v1/responses": "vllm.entrypoints.openai.responses.protocol:ResponsesRequest",
    "/v1/messages": "vllm.entrypoints.anthropic.protocol:AnthropicMessagesRequest",
    "/v1/messages/count_tokens": "vllm.entrypoints.anthropic.protocol:AnthropicCountTokensRequest",
}
MAX_TYPE_CHARS = 60


def main() -> int:
    """Write or compare the table; the exit status shows whether it was up to date."""
    target = next((Path(word) for word in sys.argv[1:] if not word.startswith("-")), TABLE)
    text = json.dumps(table(), indent=1, sort_keys=True) + "\n"
    if "--check" not in sys.argv:
        target.write_text(text, encoding="utf-8")
        return 0
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return 0
    print(f"{target} differs from what this vLLM gives: run `make request-fields`", file=sys.stderr)
    return 1


def table() -> dict[str, Any]:
    """Return `{"vllm": version, "routes": {route: {field: type}}, "nested": {name: [model.name, ...]}}`."""
    routes: dict[str, dict[str, str]] = {}
    nested: dict[str, set[str]] = {}
    for route, place in MODELS.items():
        module, _, name = place.partition(":")
        model = getattr(import_module(module), name)
        routes[route] = {field: as_text(kind) for field, kind in fields_of(model).items()}
        for inner in models_below(model):
            for field in fields_of(inner):
                nested.setdefault(field, set()).add(inner.__qualname__)
    version = import_module("vllm").__version__.partition("+")[0]
    return {"vllm": version, "routes": routes, "nested": {name: sorted(owners) for name, owners in nested.items()}}


def fields_of(model: Any) -> dict[str, Any]:
    """Return a model's fields as requests name them, and their types."""
    if hasattr(model, "model_fields"):
        return {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    if dataclasses.is_dataclass(model):
        return {
            field.name: typing.get_type_hints(model)[field.name] for field in dataclasses.fields(model) if field.init
        }
    return typing.get_type_hints(model)


def models_below(model: Any) -> list[Any]:
    """Return every model that a field of `model` can contain, directly or through other models."""
    found: dict[str, Any] = {}
    pending = list(fields_of(model).values())
    while pending:
        kind = pending.pop()
        pending.extend((*typing.get_args(kind), *filter(None, [getattr(kind, "__value__", None)])))  # and type aliases
        is_model = is_typeddict(kind) or hasattr(kind, "model_fields") or dataclasses.is_dataclass(kind)
        if is_model and f"{kind.__module__}.{kind.__qualname__}" not in found:
            found[f"{kind.__module__}.{kind.__qualname__}"] = kind
            pending.extend(fields_of(kind).values())
    return list(found.values())


def is_typeddict(kind: Any) -> bool:
    """Return whether this is a TypedDict, from typing or from typing_extensions, which pydantic models use."""
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")


def as_text(kind: Any) -> str:
    """Return a type as a person writes it, without modules, and short enough for a table cell."""
    text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+", "", text)
    return text if len(text) <= MAX_TYPE_CHARS else text[: MAX_TYPE_CHARS - 3] + "..."


if __name__ == "__main__":
    sys.exit(main())
