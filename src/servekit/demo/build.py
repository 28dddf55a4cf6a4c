"""The demo checkpoint: a Gemma 4 with random weights that every tool accepts as a real one.

`tiny` lets servekit be tried on any machine in seconds; `e4b` has the shapes and sizes of
google/gemma-4-E4B-it, for measurements on a GPU that do not depend on what the weights say.
"""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from servekit.demo.json_files import (
    CHAT_TEMPLATE,
    generation_config,
    model_config,
    processor_config,
    tokenizer_config,
)
from servekit.demo.shard_writer import Shard, index, shards, write_shard
from servekit.demo.sizes import SIZES, Gemma4, Size
from servekit.demo.tensor_list import tensors
from servekit.demo.vocabulary import Vocabulary, tokenizer, vocabulary
from servekit.errors import ConfigurationError, Finding
from servekit.file_trouble import about, make_folder

GENERATOR = 2
"""Version of what this package writes: raise it with every change that gives other bytes for a seed."""

RECORD = "servekit-demo.json"
"""File in the checkpoint that says what it was made from and how large its files are."""

SHARD_BYTES = 4_000_000_000
PROGRESS_BYTES = 1_000_000_000


def build_demo_model(
    directory: Path,
    *,
    size: Size = "tiny",
    quantized: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _line: None,
) -> None:
    """Write a checkpoint of random weights into `directory`, which must not exist or be empty.

    The same arguments give the same bytes. With `quantized` it is W4A16 in compressed-tensors format (10.1 GB
    for e4b, 7.4 MB for tiny), without it BF16 (16.0 GB, 15.6 MB). `directory` appears at once and complete, or
    not at all. `progress` gets a line for every GB.

    Raises `ConfigurationError` where `directory` holds something, or its disk has not enough room.
    """
    _refuse_occupied(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with about(directory), _partial(directory) as partial:
        _write(partial, size=size, quantized=quantized, seed=seed, progress=progress)
        try:
            partial.rename(directory)
        except OSError:
            _refuse_occupied(directory)  # filled by somebody else in the meantime
            raise


def ensure_demo_model(
    cache: Path,
    *,
    size: Size = "tiny",
    quantized: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _line: None,
) -> Path:
    """Return the folder in `cache` that holds this checkpoint, after building it if need be.

    It is built anew where it is missing, where its files do not have their sizes, and where another version of
    the generator made it. Several processes may ask at once: one builds,
    the others wait for it.
    """
    directory = demo_directory(cache, size=size, quantized=quantized, seed=seed)
    wanted = _identity(size=size, quantized=quantized, seed=seed)
    make_folder(cache)
    with (cache / f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_intact(directory, wanted):
            _remove_partials(directory)
            if directory.exists():
                progress(f"replacing {directory}: it is damaged, or of another version of the generator")
                shutil.rmtree(directory)
            build_demo_model(directory, size=size, quantized=quantized, seed=seed, progress=progress)
    return directory


def demo_directory(cache: Path, *, size: Size = "tiny", quantized: bool = True, seed: int = 0) -> Path:
    """Return where in `cache` this checkpoint is, or will be."""
    return cache / f"gemma4-{size}-{'w4a16' if quantized else 'bf16'}-seed{seed}"


def _write(directory: Path, *, size: Size, quantized: bool, seed: int, progress: Callable[[str], None]) -> None:
    model = SIZES[size]
    words = vocabulary(model.text.vocabulary)
    files = shards(tensors(model, quantized=quantized, quiet_tokens=words.quiet), limit_bytes=SHARD_BYTES)
    _refuse_small_disk(directory, sum(shard.nbytes for shard in files))
    _write_weights(directory, files, seed=seed, progress=progress)
    _write_texts(directory, model, words, quantized=quantized)
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    _write_json(directory / RECORD, _identity(size=size, quantized=quantized, seed=seed) | {"files": sizes})


def _write_weights(directory: Path, files: list[Shard], *, seed: int, progress: Callable[[str], None]) -> None:
    total = sum(shard.nbytes for shard in files)
    done = 0

    def written(count: int) -> None:
        nonlocal done
        if done // PROGRESS_BYTES < (done + count) // PROGRESS_BYTES:
            progress(f"{(done + count) / 1e9:.0f} of {total / 1e9:.1f} GB of weights written")
        done += count

    for shard in files:
        write_shard(directory / shard.filename, shard, seed=seed, written=written)
    if len(files) > 1:
        _write_json(directory / "model.safetensors.index.json", index(files))


def _write_texts(directory: Path, model: Gemma4, words: Vocabulary, *, quantized: bool) -> None:
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(directory / "config.json", model_config(model, words.special, quantized=quantized))
    _write_json(directory / "generation_config.json", generation_config(words.special))
    _write_json(directory / "processor_config.json", processor_config(model.vision))
    _write_json(directory / "tokenizer.json", tokenizer(words))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(model.text))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _identity(*, size: Size, quantized: bool, seed: int) -> dict[str, object]:
    return {"generator": GENERATOR, "size": size, "quantized": quantized, "seed": seed}


def _is_intact(directory: Path, wanted: dict[str, object]) -> bool:
    """Whether `directory` was made from `wanted` and its files still have their sizes."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        files: dict[str, int] = record.pop("files")
        sizes = {name: (directory / name).stat().st_size for name in files}
    except PermissionError:
        raise  # another user's: it cannot be replaced either
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return bool(record == wanted and sizes == files)


@contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    """Lend a folder beside `directory` to build in, gone afterwards unless it was renamed."""
    partial = Path(tempfile.mkdtemp(prefix=_partial_prefix(directory), dir=directory.parent))
    try:
        partial.chmod(0o755)  # mkdtemp gives 0700, but the engine may run as another user
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial_prefix(directory: Path) -> str:
    return f".{directory.name}.partial-"


def _remove_partials(directory: Path) -> None:
    """Remove what builds that were killed have left; call it under the lock."""
    for partial in directory.parent.glob(_partial_prefix(directory) + "*"):
        shutil.rmtree(partial)


def _refuse_occupied(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigurationError([Finding("is a file", file=str(directory), remedy="name a new folder")])
    if any(directory.iterdir()):
        raise ConfigurationError(
            [Finding("the folder is not empty", file=str(directory), remedy="name a new one, or empty it first")]
        )


def _refuse_small_disk(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise ConfigurationError(
            [
                Finding(
                    f"the checkpoint needs {needed_bytes / 1e9:.1f} GB",
                    file=str(directory.parent),
                    got=f"{free_bytes / 1e9:.1f} GB free",
                    remedy="make room, or name a folder on another disk",
                )
            ]
        )
