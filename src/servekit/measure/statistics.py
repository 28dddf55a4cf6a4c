"""Statistics of repeated and of paired measurements: medians, intervals, ratios, and their standard errors."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NORMAL_QUARTILES = 1.349
"""The middle half of a normal distribution, in standard deviations."""
_MEDIAN_OVER_MEAN = 1.253
"""The standard error of a median over that of a mean: the root of half of pi."""


@dataclass(frozen=True)
class Spread:
    """The median of some values, and an interval around it."""

    median: float
    low: float
    high: float


def extremes(values: Sequence[float]) -> Spread:
    """Return the median, the least and the greatest value."""
    return Spread(statistics.median(values), min(values), max(values))


def quartiles(values: Sequence[float]) -> Spread:
    """Return the median and the interval that holds the middle half of the values."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4)
    return Spread(middle, low, high)


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio_of_medians(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of `values` over that of `others`."""
    return statistics.median(values) / statistics.median(others)


def ratios_of_pairs(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return for each pair of runs the ratio: what disturbs both runs of a pair alike cancels out."""
    return [one / other for one, other in zip(values, others, strict=True)]


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; infinite for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def median_error(values: Sequence[float]) -> float:
    """Return the standard error of the median, from the middle half of the values and as if they were independent."""
    if len(values) == 1:
        return math.inf
    middle_half = quartiles(values)
    deviation = (middle_half.high - middle_half.low) / _NORMAL_QUARTILES
    return _MEDIAN_OVER_MEAN * deviation / math.sqrt(len(values))


def pooled_deviation(groups: Iterable[Sequence[float]]) -> float:
    """Return the standard deviation within groups, each around its own mean; infinite where no group has two values."""
    groups = list(groups)
    free = sum(len(group) - 1 for group in groups)
    squares = sum((value - statistics.mean(group)) ** 2 for group in groups for value in group)
    return math.sqrt(squares / free) if free else math.inf
