"""Successive halving, the estimate, and what a budget leaves."""

import pytest

from servekit.errors import ConfigurationError
from servekit.tune.schedule import Schedule, duration, fit


def schedule(candidates: int, rounds: int = 3) -> Schedule:
    """Return a schedule of two loads of two minutes on a GPU."""
    return Schedule(candidates=candidates, rounds=rounds, seconds=120, loads=2, start_s=120, warm_up_s=30)


def test_half_go_on_and_runs_get_twice_as_long() -> None:
    """Twelve are screened in 30 s, six in 60 s; four and the two best changes together have rounds of 120 s."""
    stages = [(each.entrants, each.rounds, each.seconds, each.final) for each in schedule(12).stages]
    assert stages == [(12, 1, 30, False), (6, 1, 60, False), (5, 3, 120, True)]
    assert schedule(12).starts == 12 + 6 + 15


def test_few_candidates_need_no_screening() -> None:
    """Four candidates, twice each, are eight starts, and nothing is screened or joined."""
    stages = [(each.entrants, each.rounds, each.final) for each in schedule(4, 2).stages]
    assert stages == [(4, 2, True)]
    assert schedule(4, 2).about_s == 8 * (120 + 10 + 2 * (2 * 42 + 12 + 120))


def test_a_budget_takes_rounds_first_and_then_candidates() -> None:
    """What fits keeps as many candidates as possible, with two rounds at least."""
    assert fit(schedule(12), 24 * 3600) == schedule(12)
    shorter = fit(schedule(12), schedule(12).about_s - 1)
    assert shorter == schedule(12, 2)
    two_hours = fit(schedule(12), 2 * 3600)
    assert 4 <= two_hours.candidates < 12
    assert two_hours.about_s <= 2 * 3600
    assert fit(schedule(4, 1), schedule(4, 1).about_s).rounds == 1


def test_a_budget_that_is_too_short_is_told() -> None:
    """The message says what two candidates take."""
    with pytest.raises(ConfigurationError, match=r"--budget: two candidates, 2 starts each, take about 38 min"):
        fit(schedule(12), 60)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "2 min"), (3600, "1 h"), (5400, "1 h 30 min")]
)
def test_durations(seconds: float, text: str) -> None:
    """Durations are written as people say them."""
    assert duration(seconds) == text
