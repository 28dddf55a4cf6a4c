"""Changes to a checkpoint's folder, each a name and JSON values, so that a record can hold and repeat them."""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"
BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I32": 4, "I64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1}

Tensor = tuple[str, list[int], bytes]
"""Dtype, shape, data."""
Tensors = dict[str, Tensor]


def apply(folder: Path, changes: Iterable[list[Any]]) -> None:
    """Make the changes, one after the other."""
    for name, *arguments in changes:
        CHANGES[name](folder, *arguments)


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], raw[slice(*(start + offset for offset in entry["data_offsets"]))])
        for name, entry in header.items()
    }


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def _at(folder: Path, file: str, path: list[Any], change: Callable[[Any, Any], object]) -> None:
    """Change the JSON file: `change` gets the object that holds the last key of `path`, and the key."""
    content = inner = json.loads((folder / file).read_bytes())
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    (folder / file).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _set(folder: Path, file: str, path: list[Any], value: Any) -> None:
    _at(folder, file, path, lambda inner, key: inner.__setitem__(key, value))


def _delete(folder: Path, file: str, path: list[Any]) -> None:
    _at(folder, file, path, lambda inner, key: inner.__delitem__(key))


def _rename(folder: Path, file: str, path: list[Any], key: str) -> None:
    _at(folder, file, path, lambda inner, old: inner.__setitem__(key, inner.pop(old)))


def _nest(folder: Path, file: str, path: list[Any], section: str) -> None:
    """Move a top-level key into a section."""
    _at(folder, file, path, lambda inner, key: inner[section].__setitem__(key, inner.pop(key)))


def _part(folder: Path, file: str, key: str, name: str) -> None:
    """Write one section of a JSON file to a file of its own."""
    (folder / name).write_text(json.dumps(json.loads((folder / file).read_bytes())[key]), encoding="utf-8")


def _replace(folder: Path, file: str, old: str, new: str) -> None:
    """Replace every match of a regular expression in the file's text; `old` empty: the whole text."""
    text = (folder / file).read_text(encoding="utf-8") if old else ""
    (folder / file).write_text(re.sub(old, lambda _: new, text) if old else new, encoding="utf-8")


def _cut(folder: Path, file: str, share: float) -> None:
    """Keep only this share of the file's bytes, or make it longer."""
    os.truncate(folder / file, int((folder / file).stat().st_size * share))


def _remove(folder: Path, file: str) -> None:
    (folder / file).unlink()


def _move(folder: Path, file: str, name: str) -> None:
    (folder / file).rename(folder / name)


def _copy(folder: Path, file: str, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes((folder / file).read_bytes())


def _each(change: Callable[..., Tensors]) -> Callable[..., None]:
    """Make a change of the shard: `change` replaces each tensor whose whole name matches by the tensors it returns."""

    def run(folder: Path, pattern: str, *arguments: Any) -> None:
        kept: Tensors = {}
        made: Tensors = {}
        for name, tensor in read_tensors(folder / SHARD).items():
            match = re.fullmatch(pattern, name)
            if match:
                made |= change(name, tensor, match, *arguments)
            else:
                kept[name] = tensor
        write_tensors(folder / SHARD, kept | made)

    return run


def _cast(name: str, tensor: Tensor, _: object, dtype: str) -> Tensors:
    """Convert BF16 values, or only relabel the bytes where the sizes agree and `dtype` begins with `=`."""
    stored, shape, data = tensor
    if dtype.startswith("="):
        return {name: (dtype[1:], shape, data)}
    if stored != "BF16":
        return {name: tensor}
    values = struct.unpack(
        f"<{len(data) // 2}f", b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    )
    code = {"F16": "e", "F32": "f", "F64": "d"}[dtype]
    return {name: (dtype, shape, struct.pack(f"<{len(values)}{code}", *values))}


def _reshape(name: str, tensor: Tensor, _: object, shape: list[int]) -> Tensors:
    """Give another shape; the data is repeated or cut to fit."""
    size = math.prod(shape) * BYTES[tensor[0]]
    return {name: (tensor[0], shape, (tensor[2] * (size // max(1, len(tensor[2])) + 1))[:size])}


def _regroup(name: str, tensor: Tensor, match: re.Match[str], group: int, zeros: int) -> Tensors:
    """Give a packed weight other scales (group -1: one for each output), and zero points."""
    rows, columns = tensor[1]
    groups = 1 if group < 0 else columns * 8 // group
    made = {name: tensor, f"{match[1]}.weight_scale": ("BF16", [rows, groups], b"\x80\x3c" * (rows * groups))}
    if zeros:
        made[f"{match[1]}.weight_zero_point"] = ("I32", [rows // 8, groups], b"\x78" * (rows // 2 * groups))
    return made


def _scheme(folder: Path, group: int, zeros: int) -> None:
    """Quantize in other groups, with zero points or without, and declare it."""
    CHANGES["regroup"](folder, r"(.*)\.weight_packed", group, zeros)
    section = ["quantization_config", "config_groups", "group_0", "weights"]
    values = {"group_size": group if group > 0 else None, "strategy": "group" if group > 0 else "channel"}
    for key, value in (values | {"symmetric": not zeros}).items():
        _set(folder, "config.json", [*section, key], value)


def _unpack(name: str, tensor: Tensor, match: re.Match[str]) -> Tensors:
    """Store a packed weight plain, in BF16; drop what else matches, such as its scales."""
    if not name.endswith("weight_packed"):
        return {}
    rows, columns = tensor[1]
    return {f"{match[1]}.weight": ("BF16", [rows, columns * 8], b"\x80\x3c" * (rows * columns * 8))}


def _add(folder: Path, name: str, dtype: str, shape: list[int], byte: int, file: str = SHARD) -> None:
    """Add a tensor whose bytes are all the same, to the shard or to a file of its own."""
    tensors = read_tensors(folder / file) if (folder / file).exists() else {}
    tensors[name] = (dtype, shape, bytes([byte]) * (math.prod(shape) * BYTES[dtype]))
    write_tensors(folder / file, tensors)


def _split(folder: Path, parts: int, index: str, repeat: int) -> None:
    """Make several shards of the one, with an index of this name; the first `repeat` tensors go into two shards."""
    tensors = read_tensors(folder / SHARD)
    names = list(tensors)
    where: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        chosen = names[part::parts] + (names[:repeat] if part == 1 else [])
        write_tensors(folder / file, {name: tensors[name] for name in chosen})
        where |= dict.fromkeys(chosen, file)
    (folder / SHARD).unlink()
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
    (folder / index).write_text(text, encoding="utf-8")


CHANGES: dict[str, Callable[..., None]] = {
    "set": _set,
    "delete": _delete,
    "rename": _rename,
    "nest": _nest,
    "part": _part,
    "replace": _replace,
    "cut": _cut,
    "remove": _remove,
    "move": _move,
    "copy": _copy,
    "drop": _each(lambda *_: {}),
    "name": _each(lambda _, tensor, match, new: {match.expand(new): tensor}),
    "double": _each(lambda name, tensor, match, new: {name: tensor, match.expand(new): tensor}),
    "cast": _each(_cast),
    "reshape": _each(_reshape),
    "regroup": _each(_regroup),
    "scheme": _scheme,
    "unpack": _each(_unpack),
    "add": _add,
    "split": _split,
}
