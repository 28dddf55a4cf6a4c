"""What a search found, as text, as Markdown and as JSON."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from servekit.tune.candidates import AS_IT_IS, Candidate, LeftOut
from servekit.tune.comparison import Comparison, failures
from servekit.tune.goals import GOALS
from servekit.tune.intervals import Difference
from servekit.tune.schedule import Schedule, Stage, duration
from servekit.tune.search import Found

_HEADINGS: Final = ("candidate", "figure", "difference", "95 % interval", "verdict")
_SETTINGS: Final = "SERVEKIT_{}={}"


def report_text(goal: str, found: Found, left_out: Sequence[LeftOut]) -> str:
    """Write the report for a terminal."""
    rows = [_HEADINGS, *_rows(found.comparison)] if found.comparison else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join((_title(goal, found), "", *table, "", *_sentences(found, left_out)))


def report_markdown(goal: str, found: Found, left_out: Sequence[LeftOut]) -> str:
    """Write the report for a document."""
    rows = [_HEADINGS, ("---",) * len(_HEADINGS), *_rows(found.comparison)] if found.comparison else []
    table = [f"| {' | '.join(row)} |" for row in rows]
    sentences = [f"- {each}" for each in _sentences(found, left_out)]
    return "\n".join((f"# {_title(goal, found)}", "", *table, "", *sentences, ""))


def report_json(goal: str, found: Found, left_out: Sequence[LeftOut]) -> str:
    """Write the report for a program."""
    comparison = found.comparison
    described: dict[str, Any] = {
        "goal": goal,
        "figure": GOALS[goal].figure,
        "winner": comparison.winner if comparison else None,
        "budget_spent": found.spent,
        "candidates": [asdict(each) for each in found.candidates],
        "finalists": [
            {
                "name": name,
                "figures": list(figures),
                **(_interval(comparison.differences[name]) if name != AS_IT_IS else {}),
                "verdict": comparison.verdict(name) if name != AS_IT_IS else None,
            }
            for name, figures in comparison.figures.items()
        ]
        if comparison
        else [],
        "screened": found.screened,
        "failed": {name: trial.failure for name, trial in failures(found.trials).items()},
        "left_out": {each.name: each.why for each in left_out},
        "runs": [trial.model_dump() for trial in found.trials],
    }
    return json.dumps(described, indent=2)


def plan_text(candidates: Sequence[Candidate], left_out: Sequence[LeftOut], schedule: Schedule) -> str:
    """Write what a search would do."""
    lines = [f"{each.name}: {changes(each)}\n    {each.reason}" for each in candidates]
    lines += [f"not tried: {each.name}: {each.why}" for each in left_out]
    return "\n".join([*lines, *map(_stage_text, schedule.stages), estimate_text(schedule)])


def estimate_text(schedule: Schedule) -> str:
    """Write how long a search takes."""
    return f"about {duration(schedule.about_s)}: {schedule.starts} starts, each with {schedule.loads} loads"


def reasons(candidate: Candidate, found: Found, goal: str) -> list[str]:
    """Return why the winner's profile says what it says, with the figures."""
    assert found.comparison is not None
    comparison, figure = found.comparison, GOALS[goal].figure
    here, before = (statistics.geometric_mean(comparison.figures[name]) for name in (candidate.name, AS_IT_IS))
    difference = comparison.differences[candidate.name]
    sure = f"with 95 % confidence {interval(difference)}" if comparison.rounds > 1 else "measured once, so not sure"
    gain = f"{here:.4g} instead of {before:.4g}, {share(difference.ratio)}, {sure}"
    return [f"servekit tune: {candidate.reason}.", f"{figure}: {gain} (rounds: {comparison.rounds})."]


def changes(candidate: Candidate) -> str:
    """Write what a candidate changes."""
    keys = [f"{key}: {json.dumps(value)}" for key, value in candidate.changes.items()]
    settings = [_SETTINGS.format(name.upper(), value) for name, value in candidate.settings.items()]
    return ", ".join((*keys, *settings)) or "no change"


def interval(difference: Difference) -> str:
    """Write the interval of a difference."""
    return f"{share(difference.low)} to {share(difference.high)}" if math.isfinite(difference.high) else "unknown"


def share(ratio: float) -> str:
    """Write a ratio as a signed percentage."""
    return f"{100 * (ratio - 1):+.1f} %"


def _title(goal: str, found: Found) -> str:
    rounds = found.comparison.rounds if found.comparison else 0
    wanted = "more" if GOALS[goal].sign > 0 else "less"
    return (
        f"servekit tune: {GOALS[goal].figure} ({wanted} is better), {len(found.trials)} starts, final rounds: {rounds}"
    )


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    order = sorted(comparison.differences, key=comparison.gain, reverse=True)
    for name in (AS_IT_IS, *order):
        mean = f"{statistics.geometric_mean(comparison.figures[name]):.4g}"
        if name == AS_IT_IS:
            yield name, mean, "", "", ""
        else:
            difference = comparison.differences[name]
            yield name, mean, share(difference.ratio), interval(difference), comparison.verdict(name)


def _sentences(found: Found, left_out: Sequence[LeftOut]) -> Iterator[str]:
    yield _result(found)
    for number, order in enumerate(found.screened, 1):
        base = order.get(AS_IT_IS)
        gone = [f"{name} {share(each / base)}" for name, each in order.items() if base and name != AS_IT_IS]
        yield f"screening {number}, measured once each: {', '.join(gone) or 'no other candidate'}"
    for name, trial in failures(found.trials).items():
        yield f"{name} failed: {trial.failure}"
    for trial in found.trials:
        for each in trial.disturbances:
            yield f"{trial.candidate}, stage {trial.stage + 1}, round {trial.round}: disturbed: {each}"
    for idea in left_out:
        yield f"not tried: {idea.name}: {idea.why}"
    if found.spent:
        yield "the budget ended the search: the same command with a larger --budget goes on"


def _result(found: Found) -> str:
    comparison = found.comparison
    if comparison is None:
        return "no result: the budget was spent before the final"
    if comparison.winner == AS_IT_IS:
        return "result: keep the profile as it is; no candidate is better beyond the noise"
    if comparison.rounds == 1:
        return f"result: {comparison.winner} leads; measured once, so that noise cannot be told from a difference"
    text = f"result: {comparison.winner} is better than the profile as it is, beyond the noise"
    return f"{text}; a draw with it: {', '.join(comparison.draws)}" if comparison.draws else text


def _interval(difference: Difference) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in asdict(difference).items()}


def _stage_text(stage: Stage) -> str:
    kind = f"final: {stage.rounds} rounds, each" if stage.final else f"screening {stage.number + 1}: each"
    return f"{kind} of {stage.entrants} started once, runs of {stage.seconds:.0f} s"
