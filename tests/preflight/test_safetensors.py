"""Reading headers: any bytes give tensors or a ShardError."""

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servekit.preflight.checkpoint.shard_header import ShardError, Tensor, read_header, read_scalar

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "dtype", "shape"]), inner),
    max_leaves=10,
)
ENTRY = st.fixed_dictionaries({"dtype": JSON | st.just("F32"), "shape": JSON, "data_offsets": JSON})


def shard(path: Path, header: bytes, data: bytes = b"") -> Path:
    """Write a shard with this header."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_tensors_come_in_file_order(tmp_path: Path) -> None:
    """Names, shapes and offsets are those of the header; the metadata is not a tensor."""
    entries = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F16", "shape": [2, 2], "data_offsets": [4, 12]},
        "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    path = shard(tmp_path / "x", json.dumps(entries).encode(), bytes(12))
    first, second = read_header(path)
    assert (first.name, first.shape, first.elements, first.size_bytes) == ("a", (), 1, 4)
    assert (second.name, second.begin, second.end) == ("b", path.stat().st_size - 8, path.stat().st_size)


@pytest.mark.parametrize(
    ("dtype", "raw"),
    [
        ("BF16", struct.pack("<f", 1.5)[2:]),
        ("F16", struct.pack("<e", 1.5)),
        ("F32", struct.pack("<f", 1.5)),
        ("F64", struct.pack("<d", 1.5)),
    ],
)
def test_scalars_are_read(tmp_path: Path, dtype: str, raw: bytes) -> None:
    """A scalar's value is read in every floating-point format."""
    path = tmp_path / "x"
    path.write_bytes(b"....." + raw)
    assert read_scalar(Tensor("s", dtype, (), 5, 5 + len(raw), path)) == 1.5


def test_integers_are_no_scalars(tmp_path: Path) -> None:
    """Only floating-point scalars can be read."""
    path = tmp_path / "x"
    path.write_bytes(bytes(4))
    with pytest.raises(ShardError, match="I32"):
        read_scalar(Tensor("s", "I32", (), 0, 4, path))


@given(data=st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_bytes_are_judged(tmp_path: Path, data: bytes) -> None:
    """Any file gives tensors or a ShardError."""
    path = tmp_path / "x"
    path.write_bytes(data)
    with contextlib.suppress(ShardError):
        read_header(path)


@given(entries=st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=3), data=st.binary(max_size=16))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_header_is_judged(tmp_path: Path, entries: dict[str, object], data: bytes) -> None:
    """Any header gives tensors or a ShardError."""
    path = shard(tmp_path / "x", json.dumps(entries).encode(), data)
    with contextlib.suppress(ShardError):
        read_header(path)
