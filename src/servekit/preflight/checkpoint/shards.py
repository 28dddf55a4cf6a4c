"""The weight files of a checkpoint: whether every shard exists and is complete, and which tensors they hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from servekit import ENGINE_VERSION
from servekit.file_trouble import explain
from servekit.preflight.checkpoint.config_file import ABSENT, BROKEN_LINK, CONFIG, WITH_BLOBS, read_object
from servekit.preflight.checkpoint.shard_header import ShardError, Tensor, read_header
from servekit.preflight.findings import Finding, error, note, warning

INDEX: Final = "model.safetensors.index.json"
MISTRAL_INDEX: Final = "consolidated.safetensors.index.json"
_CONSOLIDATED: Final = "consolidated"
_AGAIN: Final = "download or copy the file again"


def read_shards(folder: Path) -> tuple[tuple[Tensor, ...], list[Finding]]:
    """Read the tensors of the folder's shards, and report the faults of the files.

    Returns no tensors of damaged shards. vLLM 0.20.2 loads the *.safetensors files that the index names, or all of them
    without an index (model_loader/weight_utils.py, filter_duplicate_safetensors_files).
    """
    # vLLM 0.20.2 takes it for a Mistral checkpoint if there is such a file in it, or below it (default_loader.py).
    # Without config.json it is no checkpoint, and there may be anything below it.
    is_checkpoint = (folder / CONFIG).exists()
    mistral = next(folder.rglob(f"{_CONSOLIDATED}*.safetensors"), None) if is_checkpoint else None
    present = sorted(folder.glob(f"{_CONSOLIDATED if mistral else ''}*.safetensors"))
    named, findings = _read_index(folder, MISTRAL_INDEX if mistral else INDEX)
    if mistral:
        report = warning if present else error
        message = f"makes vLLM {ENGINE_VERSION} load {_CONSOLIDATED}*.safetensors of the folder, and no other file"
        name = str(mistral.relative_to(folder))
        findings.append(report("weights-consolidated", message, file=name, remedy="move the file out of the folder"))
    chosen = present if named is None else sorted({folder / shard for shard in named.values()})
    findings += _check_files(present, chosen)
    if not chosen and not mistral:
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
        except FileNotFoundError:
            reason, remedy = (BROKEN_LINK, WITH_BLOBS) if shard.is_symlink() else (ABSENT, _AGAIN)
            findings.append(error("shard-missing", reason, file=shard.name, remedy=remedy))
        except OSError as problem:
            findings.append(error("checkpoint-unreadable", file=shard.name, **explain(problem, shard)))
    findings += _duplicates(tensors)
    if named is not None:
        findings += _stale(named, tensors)
    return tuple(tensors), findings


def _read_index(folder: Path, name: str) -> tuple[dict[str, str] | None, list[Finding]]:
    """Return the index's `weight_map`, from tensor to shard; None without a usable index."""
    index, problem, _ = read_object(folder / name)
    if problem == ABSENT:
        return None, []
    weight_map = index.get("weight_map")
    if isinstance(weight_map, dict) and weight_map and all(map(_is_file_name, weight_map.values())):
        return weight_map, []
    return None, [
        error(
            "index-invalid",
            "is not a JSON object with a weight_map from tensors to file names",
            file=name,
            remedy=_AGAIN,
        )
    ]


def _is_file_name(shard: object) -> bool:
    return isinstance(shard, str) and shard != "" and Path(shard).name == shard


def _check_files(present: list[Path], chosen: list[Path]) -> Iterator[Finding]:
    for path in present:
        if path not in chosen:
            yield warning(
                "shard-stray",
                f"is not named by {INDEX}: vLLM ignores it",
                file=path.name,
                remedy="delete it, or repair the index",
            )


def _no_weights(folder: Path) -> Finding:
    suffixes = {path.suffix for path in folder.glob("*")}
    if suffixes & {".bin", ".pt"}:
        return error(
            "weights-pickle",
            "only pickled weights: loading them runs code from the file",
            subject=str(folder),
            remedy="convert the checkpoint to safetensors",
        )
    unfinished = ".incomplete" in suffixes or any(folder.glob(".cache/huggingface/download/**/*.incomplete"))
    return error(
        "weights-missing",
        f"no *.safetensors file{', only unfinished downloads' if unfinished else ''}",
        subject=str(folder),
        remedy="finish the download" if unfinished else "give the folder with the weights",
    )


def _duplicates(tensors: list[Tensor]) -> Iterator[Finding]:
    first: dict[str, Tensor] = {}
    for tensor in tensors:
        earlier = first.setdefault(tensor.name, tensor)
        if earlier is not tensor:
            yield warning(
                "tensor-duplicate",
                f"{tensor.name} is also in {earlier.shard.name}: the order of loading decides which one vLLM uses",
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
            remedy="the index and the shards are from different versions: download both again",
        )
    if unnamed:
        yield note(
            "index-stale", f"{len(unnamed)} stored tensors are not in the index, such as {unnamed[0]}", file=INDEX
        )
