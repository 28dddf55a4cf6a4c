"""Statistics of repeated and paired runs, against values worked out by hand."""

import math

import pytest

from servekit.measure.statistics import (
    Spread,
    extremes,
    median_error,
    pooled_deviation,
    quantile,
    quartiles,
    ratio_of_medians,
    ratios_of_pairs,
    standard_error,
)


def test_a_median_stands_between_the_extremes() -> None:
    """The spread of a few values is their median, minimum and maximum."""
    assert extremes([3, 1, 2]) == Spread(2, 1, 3)


def test_quartiles_hold_the_middle_half() -> None:
    """Half of the values lie between the quartiles; a single value is all three."""
    assert quartiles([1, 2, 3, 4, 5, 6, 7]) == Spread(4, 2, 6)
    assert quartiles([5.0]) == Spread(5, 5, 5)


def test_a_quantile_is_one_of_the_values() -> None:
    """A quantile has the given share of the values below it; the share 1 gives the maximum."""
    values = list(range(100))
    assert [quantile(values, share) for share in (0.5, 0.99, 1)] == [50, 99, 99]


def test_ratios_cancel_what_both_runs_of_a_pair_share() -> None:
    """A disturbance of both runs of a pair leaves the pair's ratio, and changes the ratio of medians."""
    assert ratios_of_pairs([90, 45, 90], [100, 50, 100]) == [0.9, 0.9, 0.9]
    assert ratio_of_medians([90, 45, 90], [100, 50, 50]) == 1.8


def test_errors_shrink_with_the_number_of_values() -> None:
    """The standard error is the deviation over the root of the count; one value says nothing about its error."""
    assert standard_error([1, 3]) == 1
    assert standard_error([1, 3] * 50) == pytest.approx(0.1, rel=0.02)
    assert math.isinf(standard_error([1]))
    assert math.isinf(median_error([1]))
    assert median_error([1, 2, 3, 4, 5, 6, 7]) == pytest.approx(1.253 * 4 / 1.349 / math.sqrt(7))


def test_pooled_deviation_is_that_within_the_groups() -> None:
    """Only the spread within each group counts, not that between their means; single values give no deviation."""
    assert pooled_deviation([[1, 3], [101, 103]]) == pytest.approx(math.sqrt(2))
    assert math.isinf(pooled_deviation([[1], [2]]))
