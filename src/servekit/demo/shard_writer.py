"""Writing a checkpoint's weights as safetensors files.

The format (huggingface.co/docs/safetensors): eight bytes with the header's length, little-endian; the header,
JSON that gives each tensor's type, shape and place; then the tensors' bytes end to end. A checkpoint in several
files has an index beside them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random

from servekit.demo.fills import Fill

DTYPE_BYTES = {"BF16": 2, "I32": 4, "I64": 8}
"""Bytes per element of the types used here, by their safetensors names."""

CHUNK_ELEMENTS = 1 << 20
"""Elements drawn at a time. Part of what a seed means: another value gives other bytes."""

ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: `dtype` by its safetensors name, an empty `shape` for a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: Fill

    @property
    def nbytes(self) -> int:
        """Bytes its elements take."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    def chunks(self, seed: int) -> Iterator[bytes]:
        """Its bytes in order, drawn from `seed` and its name: the same whatever else the checkpoint holds."""
        source = Random(f"{seed}:{self.name}")  # noqa: S311 -- weights are not secret, and must be reproducible
        count = prod(self.shape)
        width = self.shape[-1] if self.shape else 1
        for start in range(0, count, CHUNK_ELEMENTS):
            yield self.fill.draw(source, start, min(start + CHUNK_ELEMENTS, count), width)


@dataclass(frozen=True)
class Shard:
    """One file and the tensors in it, in the order they are written."""

    filename: str
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, without the header."""
        return sum(tensor.nbytes for tensor in self.tensors)


def shards(tensors: Sequence[Tensor], *, limit_bytes: int) -> list[Shard]:
    """Divide the tensors into files of at most `limit_bytes`; a larger tensor has a file of its own.

    Named as transformers names them: `model.safetensors`, or `model-00001-of-00003.safetensors` and so on.
    """
    groups: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if groups[-1] and sum(t.nbytes for t in groups[-1]) + tensor.nbytes > limit_bytes:
            groups.append([])
        groups[-1].append(tensor)
    if len(groups) == 1:
        return [Shard("model.safetensors", _aligned(groups[0]))]
    return [
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", _aligned(group))
        for number, group in enumerate(groups, start=1)
    ]


def write_shard(path: Path, shard: Shard, *, seed: int, written: Callable[[int], None]) -> None:
    """Write one file; `written` gets the number of bytes of each chunk."""
    with path.open("wb") as file:
        file.write(_header(shard.tensors))
        for tensor in shard.tensors:
            for chunk in tensor.chunks(seed):
                file.write(chunk)
                written(len(chunk))


def index(files: Sequence[Shard]) -> dict[str, object]:
    """Return the content of `model.safetensors.index.json`."""
    return {
        "metadata": {"total_size": sum(shard.nbytes for shard in files)},
        "weight_map": {tensor.name: shard.filename for shard in files for tensor in shard.tensors},
    }


def _aligned(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Widest elements first, so that every tensor starts at a multiple of its element's size."""
    return tuple(sorted(tensors, key=lambda tensor: -DTYPE_BYTES[tensor.dtype]))


def _header(tensors: Sequence[Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text
