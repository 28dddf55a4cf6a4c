"""Drawing the elements of random tensors."""

import math
import struct
from random import Random
from statistics import fmean, pstdev

import pytest

from servekit.demo.fills import INT4_STD, Constant, Integers, Normal, PackedInt4, Uniform, bf16


def decode(elements: bytes) -> list[float]:
    return [value for (value,) in struct.iter_unpack("<f", b"".join(_widened(elements)))]


def _widened(elements: bytes) -> list[bytes]:
    return [b"\0\0" + elements[place : place + 2] for place in range(0, len(elements), 2)]


@pytest.mark.parametrize(
    ("value", "bits"),
    [(0.0, 0x0000), (1.0, 0x3F80), (-2.0, 0xC000), (1024.0, 0x4480), (1.00390625, 0x3F80), (1.01171875, 0x3F82)],
)
def test_bf16_rounds_to_the_nearest_and_ties_to_even(value: float, bits: int) -> None:
    """A value becomes the BF16 number next to it, the even one of two equally near."""
    assert bf16(value) == bits.to_bytes(2, "little")


def test_normal_elements_have_the_asked_mean_and_deviation() -> None:
    """Normal draws are centred on zero, have the given deviation, and are finite."""
    values = decode(Normal(0.02).draw(Random(0), 0, 50_000, 100))
    assert fmean(values) == pytest.approx(0, abs=5e-4)
    assert pstdev(values) == pytest.approx(0.02, rel=0.02)
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize("cut", [7, 100, 250, 300])
def test_quiet_rows_are_a_tenth_as_wide_wherever_the_tensor_is_cut(cut: int) -> None:
    """Only the quiet rows are drawn smaller, also if a chunk begins or ends inside one."""
    fill, loud = Normal(1.0, quiet_rows=(0, 2)), Normal(1.0)
    quiet, source, reference = [], Random(1), Random(1)
    for start, stop in ((0, cut), (cut, 400)):
        pairs = zip(
            decode(fill.draw(source, start, stop, 100)), decode(loud.draw(reference, start, stop, 100)), strict=True
        )
        quiet += [abs(small) < 0.2 * abs(large) for small, large in pairs]
    assert quiet == [element // 100 in (0, 2) for element in range(400)]


def test_uniform_elements_stay_between_their_bounds() -> None:
    """Uniform draws lie between the bounds and cover the range."""
    values = decode(Uniform(0.5, 1.5).draw(Random(0), 0, 10_000, 1))
    assert 0.5 <= min(values) < 0.51
    assert 1.49 < max(values) <= 1.5


def test_constant_integers_and_words_have_the_bytes_of_their_type() -> None:
    """Constants are BF16, integers I64, packed weights I32."""
    assert decode(Constant(8.0).draw(Random(0), 3, 5, 1)) == [8.0, 8.0]
    assert Integers((640, 256)).draw(Random(0), 0, 2, 2) == struct.pack("<2q", 640, 256)
    assert len(PackedInt4().draw(Random(0), 0, 10, 1)) == 40


def test_int4_weights_are_symmetric_with_the_stated_deviation() -> None:
    """Packed weights are centred on zero and have the spread of the constant that sets the scales."""
    words = PackedInt4().draw(Random(0), 0, 10_000, 1)
    weights = [nibble - 8 for byte in words for nibble in (byte & 15, byte >> 4)]
    assert (min(weights), max(weights)) == (-7, 7)
    assert fmean(weights) == pytest.approx(0, abs=0.05)
    assert pstdev(weights) == pytest.approx(INT4_STD, rel=0.01)
