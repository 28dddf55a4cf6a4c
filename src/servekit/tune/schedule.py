"""How many starts a search takes and how long: successive halving, then rounds of the finalists, within the budget."""

import math
from dataclasses import dataclass, replace
from typing import Final

from servekit.errors import ConfigurationError, Finding

FINALISTS: Final = 4
"""The unchanged profile among them."""
_LEAST_S: Final = 30.0
"""No run is shorter, unless the operator asks for it."""
GENERATOR_S: Final = 12
"""The load generator imports vLLM first."""
_WARM_UPS: Final = 2
"""At least: the temperature has settled when it is the same after the second."""
_STOP_S: Final = 10
_LEAST_ROUNDS: Final = 2
"""An interval needs that many."""
_MINUTE_S: Final = 60


@dataclass(frozen=True)
class Stage:
    """One step of the search: `entrants` candidates, each started once a round."""

    number: int
    entrants: int
    rounds: int
    seconds: float
    """Of each load's run."""
    final: bool


@dataclass(frozen=True)
class Schedule:
    """What to start, and how long each run takes."""

    candidates: int
    """The unchanged profile included."""
    rounds: int
    """Of the finalists."""
    seconds: float
    """Of each load's run in the final rounds."""
    loads: int
    start_s: float
    """How long a start takes, about."""
    warm_up_s: float

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages: half of the candidates go on to the next one, with runs twice as long."""
        sizes = [self.candidates]
        while sizes[-1] > FINALISTS:
            sizes.append(max(FINALISTS, math.ceil(sizes[-1] / 2)))
        *screening, final = sizes
        seconds = [
            max(min(_LEAST_S, self.seconds), self.seconds / 2 ** (len(screening) - each))
            for each in range(len(screening))
        ]
        stages = [
            Stage(number, size, 1, each, final=False)
            for number, (size, each) in enumerate(zip(screening, seconds, strict=True))
        ]
        joined = bool(screening)  # the two best changes together
        return (*stages, Stage(len(stages), final + joined, self.rounds, self.seconds, final=True))

    @property
    def starts(self) -> int:
        """The number of starts."""
        return sum(stage.entrants * stage.rounds for stage in self.stages)

    @property
    def about_s(self) -> float:
        """How long it takes, about."""
        return sum(stage.entrants * stage.rounds * self.start_about_s(stage.seconds) for stage in self.stages)

    def start_about_s(self, seconds: float) -> float:
        """How long one start with its loads takes, about."""
        warm_up_s = _WARM_UPS * (self.warm_up_s + GENERATOR_S) if self.warm_up_s else 0
        return self.start_s + _STOP_S + self.loads * (warm_up_s + GENERATOR_S + seconds)


def fit(wanted: Schedule, budget_s: float) -> Schedule:
    """Return the schedule with as many of the candidates as the budget holds, then with as many rounds.

    Raises ConfigurationError where not even two are compared in it.
    """
    least = min(wanted.rounds, _LEAST_ROUNDS)
    for candidates in range(wanted.candidates, 1, -1):
        for rounds in range(wanted.rounds, least - 1, -1):
            if (smaller := replace(wanted, candidates=candidates, rounds=rounds)).about_s <= budget_s:
                return smaller
    needed = replace(wanted, candidates=2, rounds=least)
    raise ConfigurationError(
        [
            Finding(
                f"two candidates, {least} starts each, take about {duration(needed.about_s)}",
                "--budget",
                got=duration(budget_s),
                remedy="give more, or fewer --loads, or a smaller --seconds",
            )
        ]
    )


def duration(seconds: float) -> str:
    """Write a duration in hours and minutes, or in seconds."""
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(math.ceil(seconds / _MINUTE_S), 60)
    return " ".join(filter(None, (f"{hours} h" if hours else "", f"{minutes} min" if minutes else "")))
