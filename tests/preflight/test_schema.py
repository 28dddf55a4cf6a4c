"""The types of the JSON files beside the weights, against the libraries of the engine that read them."""

import copy
import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.schema.config_types import check_types
from servekit.preflight.checkpoint.schema.tokenizer_types import tokenizer_faults
from servekit.preflight.checkpoint.text_config import ARCHITECTURES, parse_text_config

VALUES: tuple[Any, ...] = (None, "x", 1, 0.5, True, [], {}, {"a": 1})
UNSTORED = {
    "text_config": (
        "use_cache",
        "attention_dropout",
        "num_experts",
        "use_bidirectional_attention",
        "initializer_range",
    ),
    "vision_config": ("hidden_activation", "attention_bias", "attention_dropout"),
    "audio_config": ("hidden_act", "residual_weight", "attention_chunk_size"),
}
"""Fields that the demo's config.json does not have."""
NOT_TYPES = {"model_type", "layer_types", "num_hidden_layers", "rope_parameters", "quantization_config"}
"""Keys that other checks judge."""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


def paths(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all keys, of the first three items of a list and of the first of many keys."""
    items = list(content.items()) if isinstance(content, dict) else list(enumerate(content))[:3]
    for key, value in items if len(items) < 50 else items[:1]:
        if key not in NOT_TYPES:
            yield (*above, key)
            if isinstance(value, dict | list):
                yield from paths(value, (*above, key))


def variations(content: Any, more: Iterable[tuple[Any, ...]] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the content with each key removed, and with each other value; before it, what was done."""
    for path in [*paths(content), *more]:
        for value in ("removed", *VALUES):
            altered = inner = copy.deepcopy(content)
            for key in path[:-1]:
                inner = inner[key]
            if value != "removed":
                inner[path[-1]] = value
            elif isinstance(inner, list) or path[-1] in inner:
                del inner[path[-1]]
            yield f"{'.'.join(map(str, path))}: {value!r}", altered


def read_by_engine(root: Path, name: str, contents: list[Any]) -> list[bool]:
    """Return whether the engine's libraries read each content of a file of this name."""
    program = [root / ".venv-engine" / "bin" / "python", Path(__file__).with_name("engine_schema.py")]
    lines = "".join(json.dumps([name, content]) + "\n" for content in contents)
    done = subprocess.run(program, input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_config_types_are_those_of_transformers(root: Path, demo: Path) -> None:
    """For every field of config.json and eight values of any type, the verdict is that of transformers."""
    content = json.loads((demo / "config.json").read_bytes())
    unstored = ((section, name) for section, names in UNSTORED.items() for name in names)
    cases = list(variations(content, unstored))
    judged = read_by_engine(root, "config.json", [altered for _, altered in cases])
    assert 100 < sum(judged) < len(cases) - 100
    text = parse_text_config(content["text_config"])
    configs = [ModelConfig(ARCHITECTURES[0], text, "bfloat16", raw=altered) for _, altered in cases]
    found = [any(check_types(config)) for config in configs]
    assert [what for (what, _), read, fault in zip(cases, judged, found, strict=True) if read is fault] == []


def test_tokenizer_types_are_those_of_tokenizers(root: Path, demo: Path) -> None:
    """For every key of tokenizer.json and eight values of any type, the verdict is that of tokenizers."""
    cases = list(variations(json.loads((demo / "tokenizer.json").read_bytes())))
    judged = read_by_engine(root, "tokenizer.json", [altered for _, altered in cases])
    assert 100 < sum(judged) < len(cases) - 100
    wrong = [
        what for (what, content), read in zip(cases, judged, strict=True) if read is bool(tokenizer_faults(content))
    ]
    assert wrong == []
