"""Writing safetensors files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from servekit.demo.fills import Constant, Integers, Normal, PackedInt4
from servekit.demo.shard_writer import CHUNK_ELEMENTS, Tensor, index, shards, write_shard

TENSORS = [
    Tensor("scalar", "BF16", (), Constant(1.0)),
    Tensor("packed", "I32", (3, 5), PackedInt4()),
    Tensor("shape", "I64", (2,), Integers((3, 40))),
    Tensor("weight", "BF16", (7, 3), Normal(1.0)),
]


def test_file_parses_back_to_the_tensors_written(tmp_path: Path, parse_shard: Callable[[Path], Any]) -> None:
    """The header names every tensor with its type, shape and bytes, end to end and without holes."""
    (shard,) = shards(TENSORS, limit_bytes=10_000)
    write_shard(tmp_path / shard.filename, shard, seed=0, written=lambda _count: None)
    parsed = parse_shard(tmp_path / "model.safetensors")
    assert parsed.metadata == {"format": "pt"}
    assert {name: (e["dtype"], tuple(e["shape"])) for name, e in parsed.entries.items()} == {
        tensor.name: (tensor.dtype, tensor.shape) for tensor in TENSORS
    }
    end = 0
    for entry in parsed.entries.values():
        assert entry["data_offsets"][0] == end
        end = entry["data_offsets"][1]
    assert end == len(parsed.data) == shard.nbytes
    assert all(parsed.bytes_of(t.name) == b"".join(t.chunks(0)) for t in TENSORS)


def test_tensors_start_at_multiples_of_their_element_size(tmp_path: Path, parse_shard: Callable[[Path], Any]) -> None:
    """A reader may map every tensor in place, because none is misaligned."""
    (shard,) = shards(TENSORS, limit_bytes=10_000)
    write_shard(tmp_path / "m", shard, seed=0, written=lambda _count: None)
    parsed = parse_shard(tmp_path / "m")
    for entry in parsed.entries.values():
        bytes_per_element = {"BF16": 2, "I32": 4, "I64": 8}[entry["dtype"]]
        assert (parsed.data_offset + entry["data_offsets"][0]) % bytes_per_element == 0


def test_tensors_are_divided_by_the_limit_and_listed_in_the_index() -> None:
    """No file exceeds the limit unless it holds a single tensor; the index finds every tensor's file."""
    files = shards(TENSORS, limit_bytes=20)
    assert [shard.filename for shard in files] == [f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)]
    assert all(shard.nbytes <= 20 or len(shard.tensors) == 1 for shard in files)
    assert index(files) == {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in TENSORS)},
        "weight_map": {
            name: f"model-0000{n}-of-00004.safetensors"
            for n, name in enumerate(("scalar", "packed", "shape", "weight"), start=1)
        },
    }


def test_large_tensors_come_in_chunks() -> None:
    """Memory stays bounded: a tensor of more than one chunk is never completely in memory."""
    tensor = Tensor("large", "BF16", (3, CHUNK_ELEMENTS // 2 + 1), Normal(1.0))
    sizes = [len(chunk) for chunk in tensor.chunks(0)]
    assert sizes == [2 * CHUNK_ELEMENTS, tensor.nbytes - 2 * CHUNK_ELEMENTS]


def test_bytes_depend_on_seed_and_name_alone() -> None:
    """Another seed or name gives other bytes; the same seed and name give the same bytes."""
    weight = TENSORS[3]
    same = Tensor("weight", "BF16", (7, 3), Normal(1.0))
    other = Tensor("other", "BF16", (7, 3), Normal(1.0))
    assert list(weight.chunks(0)) == list(same.chunks(0))
    assert list(weight.chunks(0)) != list(weight.chunks(1))
    assert list(weight.chunks(0)) != list(other.chunks(0))
