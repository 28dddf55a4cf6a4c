"""The weight files of a checkpoint: whether every shard is there and whole, and which tensors they hold."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.shard_header import ShardError, Tensor, read_header
from servekit.preflight.findings import Finding, error, note, warning

INDEX: Final = "model.safetensors.index.json"
_AGAIN: Final = "download or copy the file again"


def read_shards(folder: Path) -> tuple[tuple[Tensor, ...], list[Finding]]:
    """Read the tensors of the folder's shards, and find what is wrong with the files.

    Damaged shards contribute no tensors. vLLM 0.20.2 loads the *.safetensors files that the index names, or all of them
    without an index (model_loader/weight_utils.py, filter_duplicate_safetensors_files).
    """
    present = sorted(folder.glob("*.safetensors"))
    named, findings = _read_index(folder)
    chosen = present if named is None else sorted({folder / shard for shard in named.values()})
    findings += _check_files(present, chosen)
    if not chosen:
        findings.append(_no_weights(folder))
    tensors: list[Tensor] = []
    for shard in chosen:
        try:
            tensors += read_header(shard)
        except ShardError as problem:
            findings.append(
                error(
                    problem.finding,
                    str(problem),
                    file=shard.name,
                    remedy="run `git lfs pull`, or download from the hub"
                    if problem.finding == "shard-pointer"
                    else _AGAIN,
                )
            )
        except OSError as problem:
            what = f"cannot be read: {problem.strerror}"
            if isinstance(problem, FileNotFoundError):
                what = "is a link to nothing" if shard.is_symlink() else "does not exist"
            findings.append(error("shard-missing", what, file=shard.name, remedy=_AGAIN))
    findings += _duplicates(tensors)
    if named is not None:
        findings += _stale(named, tensors)
    return tuple(tensors), findings


def _read_index(folder: Path) -> tuple[dict[str, str] | None, list[Finding]]:
    """Return the index's `weight_map`, from tensor to shard; None where there is no usable index."""
    try:
        weight_map: dict[str, str] = json.loads((folder / INDEX).read_bytes())["weight_map"]
        if weight_map and all(_is_file_name(shard) for shard in weight_map.values()):
            return weight_map, []
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None, [
        error(
            "index-invalid",
            "is not a JSON object with a weight_map from tensors to file names",
            file=INDEX,
            remedy=_AGAIN,
        )
    ]


def _is_file_name(shard: object) -> bool:
    return isinstance(shard, str) and shard != "" and Path(shard).name == shard


def _check_files(present: list[Path], chosen: list[Path]) -> Iterator[Finding]:
    for path in present:
        if path.name.startswith("consolidated"):
            yield error(
                "weights-consolidated",
                f"makes vLLM {ENGINE_VERSION} read the folder as a Mistral checkpoint, and load such files alone",
                file=path.name,
                remedy="move the file out of the folder",
            )
        elif path not in chosen:
            yield warning(
                "shard-stray",
                f"is not named by {INDEX}: vLLM ignores it",
                file=path.name,
                remedy="delete it, or repair the index",
            )


def _no_weights(folder: Path) -> Finding:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return error(
            "weights-pickle",
            "only pickled weights: loading them runs code from the file",
            subject=str(folder),
            remedy="convert the checkpoint to safetensors",
        )
    if any(folder.glob("*.incomplete")):
        message, remedy = "no *.safetensors file, only unfinished downloads", _AGAIN
    else:
        message, remedy = "no *.safetensors file", "give the folder with the weights"
    return error("weights-missing", message, subject=str(folder), remedy=remedy)


def _duplicates(tensors: list[Tensor]) -> Iterator[Finding]:
    first: dict[str, Tensor] = {}
    for tensor in tensors:
        earlier = first.setdefault(tensor.name, tensor)
        if earlier is not tensor:
            yield warning(
                "tensor-duplicate",
                f"{tensor.name} is also in {earlier.shard.name}: the order of loading decides which one counts",
                file=tensor.shard.name,
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
            f"{len(absent)} tensors are not in the shard that the index names, such as {absent[0]}",
            file=INDEX,
            remedy="the index and the shards are of different versions: download both again",
        )
    if unnamed:
        yield note(
            "index-stale", f"{len(unnamed)} stored tensors are not in the index, such as {unnamed[0]}", file=INDEX
        )
