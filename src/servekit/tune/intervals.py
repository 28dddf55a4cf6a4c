"""How sure a difference is: candidates measured in the same rounds, compared with one of them.

Each round has one figure of each candidate. What changes from round to round (a warmer room, another prompt) changes
all of its figures alike and cancels out; what is left beside the candidates' own means is the noise. This is the
analysis of a randomized block design, with the rounds as blocks.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_CONFIDENCE: Final = 0.95
_HALVINGS: Final = 60
_LARGEST_T: Final = 1e9


@dataclass(frozen=True)
class Difference:
    """The ratio of a figure to that of another candidate, and the interval that holds it with 95 % confidence."""

    ratio: float
    low: float
    high: float
    """0 and infinity where the rounds are too few for an interval."""

    @property
    def real(self) -> bool:
        """Whether the noise does not explain it."""
        return not self.low <= 1 <= self.high


def compare(figures: Mapping[str, Sequence[float]], base: str) -> dict[str, Difference]:
    """Return how each candidate differs from `base`; `figures` has a positive one of each round, rounds in order.

    The confidence holds for all differences together (Bonferroni): of a dozen candidates without effect one would
    otherwise often look better by chance.
    """
    logs = {name: [math.log(each) for each in values] for name, values in figures.items()}
    rounds, others = len(logs[base]), len(logs) - 1
    means = {name: statistics.mean(values) for name, values in logs.items()}
    half = math.inf
    if free := (rounds - 1) * others:
        of_rounds = [statistics.mean(column) for column in zip(*logs.values(), strict=True)]
        level = statistics.mean(of_rounds)
        left = [
            value - means[name] - of_round + level
            for name, values in logs.items()
            for value, of_round in zip(values, of_rounds, strict=True)
        ]
        error = math.sqrt(math.fsum(each * each for each in left) / free * 2 / rounds)
        half = student_t(1 - (1 - _CONFIDENCE) / (2 * others), free) * error
    return {
        name: Difference(math.exp(gap), _exp(gap - half), _exp(gap + half))
        for name in logs
        if name != base
        for gap in [means[name] - means[base]]
    }


def student_t(probability: float, degrees: int) -> float:
    """Return the quantile above one half of Student's distribution; Python's library has that of the normal one only.

    By halving an interval of its distribution function, whose series for whole degrees of freedom is exact (Abramowitz
    and Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, _LARGEST_T
    for _ in range(2 * _HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + _within(middle, degrees)) / 2 < probability else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Return the probability of a value between -t and t."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    series = 0.0
    for step in range(1 + odd, degrees, 2):
        series += term
        term *= cosine * cosine * step / (step + 1)
    return 2 / math.pi * (angle + sine * series) if odd else sine * series


def _exp(value: float) -> float:
    return math.exp(value) if math.isfinite(value) else (math.inf if value > 0 else 0.0)
