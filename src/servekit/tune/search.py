"""The search: stages of starts in random order, each recorded before the next begins."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servekit.errors import ExitCode, Finding, ServekitError
from servekit.tune.candidates import AS_IT_IS, Candidate, joined
from servekit.tune.comparison import Comparison, compare_finalists, failures, ranked
from servekit.tune.schedule import Schedule, Stage, duration
from servekit.tune.state_folder import StateFolder, Trial

Run = Callable[[Candidate, Path, Stage, int, Path], Trial]
"""Starts a candidate from its profile file and measures it: the stage, the number of the round, a folder for files."""
_PARTNERS: Final = 2


class BaseFailedError(ServekitError):
    """The profile as it is does not start, or does not serve the loads."""

    exit_code = ExitCode.START_FAILED


@dataclass(frozen=True)
class Search:
    """What to look for, among what, and where it is written down."""

    goal: str
    schedule: Schedule
    candidates: Sequence[Candidate]
    """As many as the schedule has, the unchanged profile first."""
    state: StateFolder
    write_profile: Callable[[Candidate], Path]
    run: Run
    budget_s: float
    report: Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What a search has come to."""

    candidates: Sequence[Candidate]
    """All that were tried."""
    trials: Sequence[Trial]
    screened: Sequence[dict[str, float]]
    """The figures of each stage before the final, the best first."""
    comparison: Comparison | None
    """None where the budget was spent before every finalist had been measured."""
    spent: bool
    """Whether the budget ended the search."""


def search(job: Search) -> Found:
    """Make all starts that are not recorded yet, as far as the budget goes, and compare.

    Raises BaseFailedError, and what a run raises: PreflightError where something else uses the port or the GPU.
    """
    entrants, everyone = list(job.candidates), list(job.candidates)
    screened: list[dict[str, float]] = []
    spent = False
    for stage in job.schedule.stages:
        spent = not all(_round(job, stage, number, entrants) for number in range(1, stage.rounds + 1))
        trials = job.state.trials()
        if not stage.final:
            screened.append(ranked(job.goal, trials, stage.number))
        if stage.final or spent:
            break
        entrants = _next(job, stage, entrants, screened[-1])
        everyone += [each for each in entrants if each not in everyone]
    last = job.schedule.stages[-1].number
    comparison = compare_finalists(job.goal, [each.name for each in entrants], trials, last)
    return Found(everyone, trials, screened, comparison, spent)


def _next(job: Search, stage: Stage, entrants: Sequence[Candidate], order: dict[str, float]) -> list[Candidate]:
    """Return who goes on: the unchanged profile and the best others; into the final also the two best, joined."""
    following = job.schedule.stages[stage.number + 1]
    by_name = {each.name: each for each in entrants}
    others = [by_name[name] for name in order if name != AS_IT_IS]
    places = (following.entrants - following.final) - 1
    ahead = [*order][: [*order].index(AS_IT_IS)][:_PARTNERS]
    both = joined(*(by_name[name] for name in ahead)) if following.final and len(ahead) == _PARTNERS else None
    return [by_name[AS_IT_IS], *others[:places], *([both] if both else [])]


def _round(job: Search, stage: Stage, number: int, entrants: Sequence[Candidate]) -> bool:
    """Start every entrant once, in random order, unless it is recorded; return False if the budget does not hold it."""
    order = list(entrants)
    random.Random(f"{stage.number} {number}").shuffle(order)  # noqa: S311 - the same after an interruption
    trials = job.state.trials()
    done = {each.candidate for each in trials if (each.stage, each.round) == (stage.number, number)}
    left = [each for each in order if each.name not in done | failures(trials).keys()]
    about_s = _about_s(job, stage, trials)
    if left and sum(each.total_s for each in trials) + len(left) * about_s > job.budget_s:
        return False
    about_all_s = min(job.schedule.about_s, job.budget_s)
    for candidate in left:
        trials = job.state.trials()
        used_s = sum(each.total_s for each in trials)
        what = f"round {number} of {stage.rounds}" if stage.final else f"screening {stage.number + 1}"
        job.report(
            f"tune: start {len(trials) + 1} of about {job.schedule.starts}, {what}: {candidate.name}; "
            f"{duration(used_s)} used of {duration(job.budget_s)}, about {duration(max(0, about_all_s - used_s))} left"
        )
        _start(job, stage, number, candidate)
    return True


def _start(job: Search, stage: Stage, number: int, candidate: Candidate) -> None:
    folder = job.state.part(stage.number, number, candidate.name)
    trial = job.run(candidate, job.write_profile(candidate), stage, number, folder)
    if trial.failure and candidate.name == AS_IT_IS:
        remedy = f"see {folder}/serve.log, mend that first, and run the same command again"
        raise BaseFailedError([Finding(trial.failure, "the profile as it is", remedy=remedy)])
    job.state.keep(folder, trial)
    job.report(f"tune: {candidate.name}: {trial.failure or f'measured in {duration(trial.total_s)}'}")


def _about_s(job: Search, stage: Stage, trials: Sequence[Trial]) -> float:
    """Return how long a start of this stage takes, by those that are over, or by the estimate."""
    known = [each.total_s for each in trials if each.stage == stage.number and not each.failure]
    return statistics.median(known) if known else job.schedule.start_about_s(stage.seconds)
