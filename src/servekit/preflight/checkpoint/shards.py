"""The weight files of a checkpoint: whether every shard is there and whole, and which tensors they hold."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from servekit.preflight.checkpoint.shard_header import ShardError, Tensor, read_header
from servekit.preflight.findings import Finding, error, note, warning

INDEX: Final = "model.safetensors.index.json"
_AGAIN: Final = "download or copy the file again"
_REMEDIES: Final = {
    "shard-empty": _AGAIN,
    "shard-truncated": _AGAIN,
    "shard-oversized": _AGAIN,
    "shard-header": _AGAIN,
    "shard-pointer": "run `git lfs pull`, or download from the hub",
}


def read_shards(folder: Path) -> tuple[tuple[Tensor, ...], tuple[Finding, ...]]:
    """Every tensor of the folder's shards, and what is wrong with the files.

    Damaged shards contribute no tensors. vLLM 0.20.2 loads all *.safetensors files the index names, or all of them
    when there is no index (model_loader/weight_utils.py, filter_duplicate_safetensors_files).
    """
    present = sorted(path for path in folder.glob("*.safetensors"))
    findings: list[Finding] = list(_consolidated(present))
    named = _read_index(folder, findings)
    if named is None:
        chosen = present
        if not present:
            findings.append(_no_weights(folder))
    else:
        chosen = sorted({folder / shard for shard in named.values()})
        findings.extend(_strays(present, chosen))
    tensors: list[Tensor] = []
    for shard in chosen:
        try:
            tensors.extend(read_header(shard))
        except ShardError as problem:
            findings.append(error(problem.finding, str(problem), subject=shard.name, remedy=_REMEDIES[problem.finding]))
        except OSError as problem:
            findings.append(_unreadable(shard, problem))
    findings.extend(_duplicates(tensors))
    if named is not None:
        findings.extend(_stale(named, tensors))
    return tuple(tensors), tuple(findings)


def _read_index(folder: Path, findings: list[Finding]) -> dict[str, str] | None:
    """`weight_map` of the index, from tensor to shard; None when there is no usable index."""
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        if weight_map and all(_is_file_name(shard) for shard in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    findings.append(
        error(
            "index-invalid",
            "no JSON object with a weight_map from tensors to file names",
            subject=INDEX,
            remedy=_AGAIN,
        )
    )
    return None


def _is_file_name(shard: object) -> bool:
    return isinstance(shard, str) and shard != "" and Path(shard).name == shard


def _consolidated(present: Iterable[Path]) -> Iterator[Finding]:
    for path in present:
        if path.name.startswith("consolidated"):
            yield error(
                "weights-consolidated",
                "vLLM 0.20.2 takes the folder for a Mistral checkpoint and loads these files alone",
                subject=path.name,
                remedy="move the file out of the folder",
            )


def _no_weights(folder: Path) -> Finding:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return error(
            "weights-pickle",
            "only pickled weights: loading them runs code from the file",
            subject=str(folder),
            remedy="convert the checkpoint to safetensors",
        )
    partial = sorted(path.name for path in folder.glob("*.incomplete"))
    return error(
        "weights-missing",
        f"no *.safetensors file{' but unfinished downloads' if partial else ''}",
        subject=str(folder),
        remedy=_AGAIN if partial else "give the folder with the weights",
    )


def _unreadable(shard: Path, problem: OSError) -> Finding:
    if isinstance(problem, FileNotFoundError):
        what = "the link points to nothing" if shard.is_symlink() else "the file is not there"
    else:
        what = f"the file cannot be read: {problem.strerror}"
    return error("shard-missing", what, subject=shard.name, remedy=_AGAIN)


def _strays(present: list[Path], chosen: list[Path]) -> Iterator[Finding]:
    for path in present:
        if path not in chosen and not path.name.startswith("consolidated"):
            yield warning(
                "shard-stray",
                f"not named by {INDEX}: vLLM ignores it",
                subject=path.name,
                remedy="delete it, or repair the index",
            )


def _duplicates(tensors: list[Tensor]) -> Iterator[Finding]:
    first: dict[str, Tensor] = {}
    for tensor in tensors:
        earlier = first.setdefault(tensor.name, tensor)
        if earlier is not tensor:
            yield warning(
                "tensor-duplicate",
                f"{tensor.name} is also in {earlier.shard.name}: which one counts depends on the order of loading",
                subject=tensor.shard.name,
                remedy="keep one of them",
            )


def _stale(named: dict[str, str], tensors: list[Tensor]) -> Iterator[Finding]:
    where = {tensor.name: tensor.shard.name for tensor in tensors}
    read = set(where.values())
    absent = [name for name, shard in named.items() if shard in read and where.get(name) != shard]
    unnamed = [name for name in where if name not in named]
    if absent:
        yield error(
            "index-stale",
            f"{len(absent)} tensors are not in the shard the index names, such as {absent[0]}",
            subject=INDEX,
            remedy="the index and the shards are of different versions: download both again",
        )
    if unnamed:
        yield note(
            "index-stale",
            f"{len(unnamed)} stored tensors are not in the index, such as {unnamed[0]}",
            subject=INDEX,
        )
