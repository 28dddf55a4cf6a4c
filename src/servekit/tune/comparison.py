"""From the starts that are over to what they show: who goes on, who is better, and what is only noise."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servekit.tune.candidates import AS_IT_IS
from servekit.tune.goals import GOALS
from servekit.tune.intervals import Difference, compare
from servekit.tune.state_folder import Trial


@dataclass(frozen=True)
class Comparison:
    """What the final rounds show."""

    goal: str
    rounds: int
    """Rounds in which every finalist has a figure."""
    figures: Mapping[str, Sequence[float]]
    """Of each finalist that never failed, by round: the geometric mean over the loads."""
    differences: Mapping[str, Difference]
    """From the profile as it is."""
    winner: str
    """The best of those that are really better; otherwise the profile as it is, or with one round the best figure."""
    draws: Sequence[str]
    """Others that are really better than the profile as it is, and not really worse than the winner."""

    def verdict(self, name: str) -> str:
        """Return what the difference of a finalist is."""
        difference = self.differences[name]
        if self.rounds == 1:
            return "measured once"
        return ("better" if self.gain(name) > 0 else "worse") if difference.real else "a draw"

    def gain(self, name: str) -> float:
        """Return by which share of the figure a finalist is better than the profile as it is; below 0: worse."""
        return (self.differences[name].ratio - 1) * GOALS[self.goal].sign


def figure_of(trial: Trial, goal: str) -> float:
    """Return the geometric mean of a start's figures over its loads, so that each load has the same weight."""
    return statistics.geometric_mean(figures[goal] for figures in trial.figures.values())


def failures(trials: Sequence[Trial]) -> dict[str, Trial]:
    """Return the first failed start of each candidate that has one: it is not started again."""
    return {trial.candidate: trial for trial in reversed(trials) if trial.failure}


def ranked(goal: str, trials: Sequence[Trial], stage: int) -> dict[str, float]:
    """Return the figures of a stage of one round, the best first, whatever failed in later stages."""
    failed = failures([trial for trial in trials if trial.stage <= stage])
    found = {
        trial.candidate: figure_of(trial, goal)
        for trial in trials
        if trial.stage == stage and trial.candidate not in failed
    }
    return dict(sorted(found.items(), key=lambda pair: -GOALS[goal].sign * pair[1]))


def compare_finalists(goal: str, names: Sequence[str], trials: Sequence[Trial], stage: int) -> Comparison | None:
    """Compare the finalists in the rounds that are complete; None where there is none."""
    failed = failures(trials)
    names = [name for name in names if name not in failed]
    found = {(each.candidate, each.round): each for each in trials if each.stage == stage}
    rounds = [
        number for number in sorted({number for _, number in found}) if all((name, number) in found for name in names)
    ]
    if not rounds:
        return None
    figures = {name: [figure_of(found[name, number], goal) for number in rounds] for name in names}
    differences = compare(figures, AS_IT_IS) if len(names) > 1 else {}
    sign = GOALS[goal].sign
    better = [
        name for name, each in differences.items() if (each.real or len(rounds) == 1) and sign * (each.ratio - 1) > 0
    ]
    winner = max(better, key=lambda name: sign * differences[name].ratio, default=AS_IT_IS)
    draws = (
        [name for name, each in compare(figures, winner).items() if name in better and not each.real] if better else []
    )
    return Comparison(goal, len(rounds), figures, differences, winner, draws)
