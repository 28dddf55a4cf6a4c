"""Safetensors headers: which tensors a shard holds and whether the file is complete, without reading a weight.

The format (huggingface/safetensors, "Format"): 8 bytes with the header's length, little endian; the header, a
JSON object from tensor names to dtype, shape and the offsets of the data; the data, without holes, to the file's end.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip
_SCALARS: Final = {"BF16": ("<f", b"\0\0"), "F16": ("<e", b""), "F32": ("<f", b""), "F64": ("<d", b"")}
FLOAT_DTYPES: Final = frozenset(_SCALARS)

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
"""The reference implementation rejects longer headers."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a shard; `begin` and `end` are offsets in the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    shard: Path

    @property
    def elements(self) -> int:
        """Number of elements; a scalar has one."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes stored."""
        return self.end - self.begin


class ShardError(Exception):
    """A shard contradicts its header; `finding` is the name of the finding."""

    def __init__(self, finding: str, message: str) -> None:
        super().__init__(message)
        self.finding = finding


def read_header(path: Path) -> tuple[Tensor, ...]:
    """Read the tensors of one shard, in file order.

    Raises ShardError if the file is not a safetensors file, or not as long as its header says; OSError if it cannot be
    read.
    """
    file_bytes = path.stat().st_size
    if file_bytes == 0:
        raise ShardError("shard-empty", "is empty")
    with path.open("rb") as file:
        header, data_begin = _header_object(file, file_bytes)
    tensors = [_tensor(name, entry, data_begin, path) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_length(tensors, data_begin, file_bytes)
    return tuple(tensors)


def read_scalar(tensor: Tensor) -> float:
    """Read the value of a floating-point tensor of one element: a few bytes, not a weight."""
    if tensor.dtype not in _SCALARS:
        raise ShardError("shard-header", f"{tensor.name} is {tensor.dtype}, not a floating-point scalar")
    with tensor.shard.open("rb") as file:
        file.seek(tensor.begin)
        raw = file.read(tensor.size_bytes)
    form, padding = _SCALARS[tensor.dtype]
    return float(struct.unpack(form, padding + raw)[0])


def _header_object(file: BinaryIO, file_bytes: int) -> tuple[dict[str, Any], int]:
    start = file.read(LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    end = LENGTH_BYTES + length
    checks = (
        (start == b"version ", "shard-pointer", "is a Git LFS pointer, the weights were not fetched"),
        (len(start) < LENGTH_BYTES, "shard-truncated", f"ends after {len(start)} bytes"),
        (length > MAX_HEADER_BYTES, "shard-header", f"is not a safetensors file: its header would have {length} bytes"),
        (end > file_bytes, "shard-truncated", f"has {file_bytes} bytes, its header alone {end}"),
    )
    for wrong, finding, message in checks:
        if wrong:
            raise ShardError(finding, message)
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as problem:
        raise ShardError("shard-header", f"has a header that is not JSON: {problem}") from None
    if not isinstance(header, dict):
        raise ShardError("shard-header", f"has a header that is not a JSON object but {type(header).__name__}")
    return header, end


def _tensor(name: str, entry: Any, data_begin: int, path: Path) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ShardError("shard-header", f"{name} has no dtype, shape and data_offsets") from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ShardError("shard-header", f"{name} has the unknown dtype {dtype!r}")
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ShardError("shard-header", f"{name} has a shape or offsets that are not whole numbers")
    expected = (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8
    if end - begin != expected:
        raise ShardError(
            "shard-header", f"{name} is {dtype} {shape}, {expected} bytes, but its offsets span {end - begin}"
        )
    return Tensor(name, dtype, tuple(shape), data_begin + begin, data_begin + end, path)


def _check_length(tensors: list[Tensor], data_begin: int, file_bytes: int) -> None:
    position = data_begin
    for tensor in tensors:
        if tensor.begin != position:
            raise ShardError("shard-header", f"{tensor.name} does not begin where the tensor before it ends")
        position = tensor.end
    if file_bytes != position:
        kind = "shard-truncated" if file_bytes < position else "shard-oversized"
        raise ShardError(kind, f"has {file_bytes:,} bytes, its header accounts for {position:,}")
