"""Draws mutations at random: the known mistakes of `known.yaml`, and blind ones."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import yaml

from benchmarks.verdicts.changes import SHARD, read_tensors

SAME, OTHER, MORE, BY_HAND = "same", "other", "more", "wrong"
"""What the logits of a served checkpoint must be: see `known.yaml`."""
_KNOWN: Final[list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_name("known.yaml").read_text(encoding="utf-8"))
_BLIND_VALUES, _BLIND_TENSORS = 18, 7
"""How often a blind change is drawn, in weights as in `known.yaml`."""
_FILES: Final = {
    "config.json": 10,
    "generation_config.json": 2,
    "processor_config.json": 4,
    "tokenizer.json": 2,
    "tokenizer_config.json": 2,
}
_STRANGE: Final[tuple[Any, ...]] = (None, "", "auto", "1", 0, -1, 1, 3, 4096, 0.5, True, False, [], {}, ["a"], {"a": 1})
_PARTS: Final = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
_DEEPER: Final = 0.8
"""How likely a blind change goes one level further down."""

Drawn = tuple[str, list[Any]]
"""What the logits must be, and the changes."""


@dataclass(frozen=True)
class View:
    """An unchanged checkpoint as the draw sees it: its JSON files, its tensors' dtypes and shapes."""

    base: str
    files: dict[str, Any]
    tensors: dict[str, tuple[str, list[int]]]


def view(folder: Path) -> View:
    """Read the unchanged checkpoint, whose folder has the name of the base."""
    files = {name: json.loads((folder / name).read_bytes()) for name in _FILES}
    return View(folder.name, files, {name: each[:2] for name, each in read_tensors(folder / SHARD).items()})


def draw(random: Random, seen: View) -> Drawn:
    """Draw one mutation."""
    known = [kind for kind in _KNOWN if kind.get("only", seen.base) == seen.base]
    weights = [_BLIND_VALUES, _BLIND_TENSORS, *(kind["weight"] for kind in known)]
    kind: Any = random.choices([_blind_value, _blind_tensor, *known], weights)[0]
    if callable(kind):
        drawn: Drawn = kind(random, seen)
        return drawn
    return _made(random, seen, random.choice(kind["cases"]))


def cases(random: Random, seen: View) -> list[Drawn]:
    """Make every case of `known.yaml` once."""
    kinds = [kind for kind in _KNOWN if kind.get("only", seen.base) == seen.base]
    return [_made(random, seen, case) for kind in kinds for case in kind["cases"]]


def _made(random: Random, seen: View, case: dict[str, list[Any]]) -> Drawn:
    ((means, changes),) = case.items()
    words = {"${layer}": str(random.randrange(6)), "${part}": random.choice(_PARTS)}
    return means, [_filled(random, seen, words, change) for change in changes]


def _filled(random: Random, seen: View, words: dict[str, str], value: Any) -> Any:
    """Return a part of a case with one choice for each of its placeholders."""
    if isinstance(value, str):
        for word, filling in words.items():
            value = value.replace(word, filling)
        return value
    if isinstance(value, list):
        return [_filled(random, seen, words, each) for each in value]
    if isinstance(value, dict):
        if "any" in value:
            return _filled(random, seen, words, random.choice(value["any"]))
        if "tensor" in value:
            return re.escape(random.choice([name for name in seen.tensors if re.fullmatch(value["tensor"], name)]))
        return {key: _filled(random, seen, words, each) for key, each in value.items()}
    return value


def _blind_value(random: Random, seen: View) -> Drawn:
    """Delete, rename or change a key of a JSON file."""
    file = random.choices(list(_FILES), list(_FILES.values()))[0]
    path: list[Any] = []
    value = seen.files[file]
    while isinstance(value, dict | list) and value and (not path or random.random() < _DEEPER):
        path.append(random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value)))
        value = value[path[-1]]
    kind = random.choice(["delete", "rename", "strange", "near", "near"])
    # The tokenizer decides on the ids of tokens, config.json on the sizes of the vision tower.
    elsewhere = file == "config.json" and str(path[0]).endswith("_token_id")
    elsewhere |= file == "processor_config.json" and path[-1] in {"patch_size", "pooling_kernel_size"}
    means = SAME if elsewhere else OTHER
    if kind == "delete" or (kind == "rename" and not isinstance(path[-1], str)):
        return means, [["delete", file, path]]
    if kind == "rename":
        return means, [["rename", file, path, random.choice([f"{path[-1]}s", path[-1].upper(), f"_{path[-1]}"])]]
    return means, [["set", file, path, random.choice(_STRANGE) if kind == "strange" else _near(random, value)]]


def _near(random: Random, value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return random.choice([value + 1, value * 2, value // 2 if isinstance(value, int) else value / 2, -value])
    if isinstance(value, str):
        return random.choice([value + "s", value.upper(), value.lower(), value[::-1], value.replace("_", "-")])
    if isinstance(value, list):
        return random.choice([value[1:], value[::-1], value + value[-1:], []])
    lost = random.choice([*value, None])
    return {key: each for key, each in value.items() if key != lost}


def _blind_tensor(random: Random, seen: View) -> Drawn:
    """Drop, rename, reshape or relabel a tensor."""
    name = random.choice(list(seen.tensors))
    dtype, shape = seen.tensors[name]
    plain = re.escape(name)
    more = [[2 * size for size in shape], [*shape[:-1], *(size + 1 for size in shape[-1:])]]
    shapes = [shape[::-1], [*shape, 1], [1, *shape], *more]
    # Without a bound of the vision tower vLLM does not clip: the judge's few images seldom reach it. Packed weights
    # whose bits are called floats become whole numbers.
    lost = BY_HAND if re.search(r"vision_tower.*(input|output)_(min|max)$", name) else SAME
    relabelled = BY_HAND if dtype == "I32" else OTHER
    drawn: list[Drawn] = [
        (lost, [["drop", plain]]),
        (lost, [["name", plain, random.choice([f"x.{name}", f"{name}s"])]]),
        (SAME, [["reshape", plain, random.choice(shapes)]]),
        (relabelled, [["cast", plain, {"BF16": "=F16", "I32": "=F32", "I64": "=F64"}[dtype]]]),
    ]
    return random.choice(drawn)
