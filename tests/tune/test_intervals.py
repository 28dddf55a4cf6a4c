"""Which differences are real: recorded figures, and many made-up searches whose truth is known."""

import math
import random

import pytest

from servekit.tune.intervals import compare, student_t

RECORDED = {
    "as-it-is": (1580.2, 1603.9, 1571.4),
    "batched-8192": (1662.8, 1690.5, 1650.1),
    "graphs-256": (1586.0, 1598.7, 1578.9),
}
"""Tokens/s in three rounds, of which the second was faster for all."""


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.995, 6, 3.707), (0.99, 9, 2.821), (0.975, 30, 2.042)],
)
def test_quantiles_are_those_of_the_tables(probability: float, degrees: int, quantile: float) -> None:
    """Student's distribution for odd and even degrees of freedom, to the digits of published tables."""
    assert student_t(probability, degrees) == pytest.approx(quantile, abs=5e-4)


def test_a_real_difference_and_a_draw() -> None:
    """A gain that every round shows is real; one that the rounds contradict is a draw, however the rounds differ."""
    differences = compare(RECORDED, "as-it-is")
    gain = differences["batched-8192"]
    assert gain.real
    assert gain.low < gain.ratio < gain.high
    assert gain.ratio == pytest.approx(1.0522, abs=1e-3)
    assert not differences["graphs-256"].real


def test_what_changes_a_whole_round_is_no_noise() -> None:
    """A round in which everything is a third slower leaves the intervals as they are."""
    slower = {name: (values[0], values[1] * 0.67, values[2]) for name, values in RECORDED.items()}
    for name, difference in compare(slower, "as-it-is").items():
        before = compare(RECORDED, "as-it-is")[name]
        assert [difference.low, difference.high] == pytest.approx([before.low, before.high])


def test_one_round_shows_nothing() -> None:
    """Figures of one start each differ, but nothing is known about the noise."""
    difference = compare({"as-it-is": [100.0], "other": [300.0]}, "as-it-is")["other"]
    assert difference.ratio == pytest.approx(3)
    assert (difference.low, difference.high) == (0, math.inf)
    assert not difference.real


def test_noise_alone_is_seldom_called_real() -> None:
    """Of 1,000 searches without any difference about one in twenty finds one, at most; a gain of 5 % is found."""
    chance = random.Random(7)

    def search(gain: float) -> bool:
        rounds = [chance.gauss(0, 0.05) for _ in range(3)]
        effects = {"as-it-is": 0.0, "a": gain, "b": 0.0, "c": 0.0}
        figures = {
            name: [math.exp(effect + of_round + chance.gauss(0, 0.01)) for of_round in rounds]
            for name, effect in effects.items()
        }
        differences = compare(figures, "as-it-is")
        return any(each.real for each in differences.values()) if gain == 0 else differences["a"].real

    assert sum(search(0) for _ in range(1000)) < 70
    assert sum(search(0.05) for _ in range(200)) > 180
