"""Where the elements of a random tensor come from, with the standard library alone and in bounded memory.

A random byte picks one of 256 quantiles of the distribution, and two `bytes.translate` tables turn it into the
two bytes of a BF16 value. That is coarse next to a true normal distribution, and all that random weights need.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from statistics import NormalDist

LEVELS = 256
"""Different values a drawn element can have: those of one random byte."""

INT4_STD = (2 * sum(value**2 for value in range(1, 8)) / 16) ** 0.5
"""Standard deviation of a random int4 weight before its scale."""


@dataclass(frozen=True)
class Normal:
    """BF16, mean zero. The rows in `quiet_rows` are drawn a tenth as wide as the others."""

    std: float
    quiet_rows: tuple[int, ...] = ()

    def draw(self, source: Random, start: int, stop: int, width: int) -> bytes:
        """Elements `start` to `stop` of a tensor whose rows are `width` elements long."""
        levels = source.randbytes(stop - start)
        values = _bf16_elements(levels, _normal_tables(self.std))
        for row in self.quiet_rows:
            first = max(row * width, start) - start
            last = min((row + 1) * width, stop) - start
            if first < last:
                values[2 * first : 2 * last] = _bf16_elements(levels[first:last], _normal_tables(self.std / 10))
        return bytes(values)


@dataclass(frozen=True)
class Uniform:
    """BF16 between `low` and `high`."""

    low: float
    high: float

    def draw(self, source: Random, start: int, stop: int, _width: int) -> bytes:
        """Elements `start` to `stop`."""
        return bytes(_bf16_elements(source.randbytes(stop - start), _uniform_tables(self.low, self.high)))


@dataclass(frozen=True)
class Constant:
    """BF16, every element the same."""

    value: float

    def draw(self, _source: Random, start: int, stop: int, _width: int) -> bytes:
        """Elements `start` to `stop`."""
        return bf16(self.value) * (stop - start)


@dataclass(frozen=True)
class PackedInt4:
    """I32, eight int4 weights to a word, between -7 and 7.

    -8 is left out, because weights of a mean other than zero would drown all else in wide layers.
    """

    def draw(self, source: Random, start: int, stop: int, _width: int) -> bytes:
        """Words `start` to `stop`."""
        return source.randbytes(4 * (stop - start)).translate(_SYMMETRIC_INT4)


@dataclass(frozen=True)
class Integers:
    """I64, these values."""

    values: tuple[int, ...]

    def draw(self, _source: Random, start: int, stop: int, _width: int) -> bytes:
        """Values `start` to `stop`."""
        return struct.pack(f"<{stop - start}q", *self.values[start:stop])


Fill = Normal | Uniform | Constant | PackedInt4 | Integers


def bf16(value: float) -> bytes:
    """Return the two bytes of the BF16 number nearest to a finite `value`, little-endian, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return struct.pack("<H", rounded)


def _bf16_elements(levels: bytes, tables: tuple[bytes, bytes]) -> bytearray:
    low, high = tables
    elements = bytearray(2 * len(levels))
    elements[0::2] = levels.translate(low)
    elements[1::2] = levels.translate(high)
    return elements


@lru_cache
def _normal_tables(std: float) -> tuple[bytes, bytes]:
    return _tables(NormalDist(0.0, std).inv_cdf)


@lru_cache
def _uniform_tables(low: float, high: float) -> tuple[bytes, bytes]:
    return _tables(lambda quantile: low + quantile * (high - low))


def _tables(quantile: Callable[[float], float]) -> tuple[bytes, bytes]:
    """Tabulate the low and the high byte of a BF16 element for each random byte."""
    elements = b"".join(bf16(quantile((level + 0.5) / LEVELS)) for level in range(LEVELS))
    return elements[0::2], elements[1::2]


def _symmetric(nibble: int) -> int:
    """Store -8 as 0; the format adds 8 to every weight."""
    return nibble or 8


_SYMMETRIC_INT4 = bytes(_symmetric(byte >> 4) << 4 | _symmetric(byte & 15) for byte in range(LEVELS))
