"""The search with a stand-in for the starts: figures of known truth, failures, interruptions and budgets."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from servekit.errors import ConfigurationError, PreflightError
from servekit.tune.candidates import AS_IT_IS, Candidate, LeftOut, unchanged
from servekit.tune.schedule import Schedule, Stage
from servekit.tune.search import BaseFailedError, Found, Search, search
from servekit.tune.state_folder import StateFolder, Trial
from servekit.tune.tune_report import report_json, report_markdown, report_text

NOISE = 0.004


@dataclass
class StandIn:
    """Starts nothing: a start's figure follows from the candidate's true speed, the round and a little chance."""

    speeds: Mapping[str, float]
    failing: Mapping[str, str] = field(default_factory=dict)
    interrupted_after: int = 1_000
    noise: float = NOISE
    made: list[tuple[int, int, str]] = field(default_factory=list)

    def __call__(self, candidate: Candidate, profile: Path, stage: Stage, number: int, folder: Path) -> Trial:  # noqa: ARG002
        """Return the record of a start."""
        (folder / "serve.log").touch()
        if len(self.made) == self.interrupted_after:
            raise KeyboardInterrupt
        self.made.append((stage.number, number, candidate.name))
        chance = random.Random(f"{stage.number} {number} {candidate.name}")
        speed = 1000.0
        for name in candidate.name.split("+"):
            speed *= self.speeds.get(name, 1.0)
        speed *= (1 + 0.05 * number) * chance.gauss(1, self.noise)
        return Trial(
            candidate=candidate.name,
            stage=stage.number,
            round=number,
            began=f"2026-01-01T00:00:{len(self.made):02}+00:00",
            start_s=60,
            total_s=300,
            failure=self.failing.get(candidate.name, ""),
            figures={"text": {"throughput": speed}, "images": {"throughput": speed / 4}},
        )


def make_search(folder: Path, run: StandIn, *names: str, rounds: int = 3, budget_s: float = 1e6) -> Search:
    """Return a search among the unchanged profile and candidates that change a key each."""
    found = [unchanged(), *(Candidate(name, "a reason", {name: 1}) for name in names)]
    schedule = Schedule(len(found), rounds, seconds=120, loads=2, start_s=60, warm_up_s=30)
    state = StateFolder(folder)
    return Search("throughput", schedule, found, state, lambda each: folder / each.name, run, budget_s, lambda _: None)


def run_search(job: Search) -> Found:
    """Search as the command does."""
    with job.state.alone():
        return search(job)


def test_the_right_one_wins(tmp_path: Path) -> None:
    """The fastest wins beyond the noise, the slower one is worse, and one that equals the profile is a draw."""
    run = StandIn({"fast": 1.06, "slow": 0.95})
    found = run_search(make_search(tmp_path, run, "fast", "same", "slow"))
    assert found.comparison is not None
    verdicts = {name: found.comparison.verdict(name) for name in ("fast", "same", "slow")}
    assert verdicts == {"fast": "better", "same": "a draw", "slow": "worse"}
    assert found.comparison.winner == "fast"
    assert found.comparison.differences["fast"].ratio == pytest.approx(1.06, abs=0.01)
    assert len(run.made) == 12
    orders = [[name for _, round_, name in run.made if round_ == number] for number in (1, 2, 3)]
    assert all(sorted(each) == sorted(orders[0]) for each in orders)
    assert len(set(map(tuple, orders))) > 1, "in random order"


def test_a_difference_within_the_noise_is_a_draw(tmp_path: Path) -> None:
    """A gain of half a percent in noise of three is not called one, and the profile stays as it is."""
    found = run_search(make_search(tmp_path, StandIn({"other": 1.005}, noise=0.03), "other"))
    assert found.comparison is not None
    assert found.comparison.verdict("other") == "a draw"
    assert found.comparison.winner == AS_IT_IS
    assert "result: keep the profile as it is" in report_text("throughput", found, ())


def test_halving_and_the_two_best_together(tmp_path: Path) -> None:
    """Of ten candidates the best are measured longer, and what two of them gain together is found."""
    names = [f"c{number}" for number in range(9)]
    run = StandIn({"c3": 1.08, "c7": 1.05, "c1": 0.9})
    found = run_search(make_search(tmp_path, run, *names))
    assert [len(order) for order in found.screened] == [10, 5]
    assert found.comparison is not None
    assert found.comparison.winner == "c3+c7"
    assert found.comparison.figures.keys() > {AS_IT_IS, "c3", "c7", "c3+c7"}
    assert "c1" not in found.screened[1]
    assert found.candidates[-1].changes == {"c3": 1, "c7": 1}


def test_a_search_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    """Wherever it ends, the next one repeats no start that is over, and comes to the same result."""
    whole = StandIn({"fast": 1.06})
    expected = run_search(make_search(tmp_path / "whole", whole, "fast", "same"))
    for after in range(9):
        folder = tmp_path / str(after)
        before = StandIn({"fast": 1.06}, interrupted_after=after)
        with pytest.raises(KeyboardInterrupt):
            run_search(make_search(folder, before, "fast", "same"))
        assert [each.name for each in (folder / "runs").glob("*.part")] != []
        rest = StandIn({"fast": 1.06})
        found = run_search(make_search(folder, rest, "fast", "same"))
        assert before.made + rest.made == whole.made
        assert found.comparison == expected.comparison
        assert list((folder / "runs").glob("*.part")) == []
    again = StandIn({})
    assert run_search(make_search(folder, again, "fast", "same")).comparison == expected.comparison
    assert again.made == []


def test_a_candidate_that_fails_is_a_result(tmp_path: Path) -> None:
    """It is not started again, and the others are compared without it."""
    run = StandIn({"fast": 1.06}, failing={"greedy": "servekit serve ended with exit code 4: out of memory"})
    found = run_search(make_search(tmp_path, run, "greedy", "fast"))
    assert [name for _, _, name in run.made].count("greedy") == 1
    assert found.comparison is not None
    assert (found.comparison.winner, found.comparison.rounds) == ("fast", 3)
    text = report_text("throughput", found, [LeftOut("graphs", "no reason")])
    assert "greedy failed: servekit serve ended with exit code 4: out of memory" in text
    assert "not tried: graphs: no reason" in text


def test_a_finalist_that_fails_changes_no_other(tmp_path: Path) -> None:
    """A search that goes on after the best of the screening has failed in the final has the same finalists."""
    speeds = {"a": 1.2, "b": 1.1, "c": 1.05}

    class Falling(StandIn):
        """Fails one candidate in the final only."""

        def __call__(self, candidate: Candidate, profile: Path, stage: Stage, number: int, folder: Path) -> Trial:
            """Return the record of a start."""
            trial = super().__call__(candidate, profile, stage, number, folder)
            return trial.model_copy(update={"failure": "died"}) if candidate.name == "a" and stage.final else trial

    whole = Falling(speeds)
    expected = run_search(make_search(tmp_path / "whole", whole, *"abcde"))
    before, rest = Falling(speeds, interrupted_after=12), Falling(speeds)
    with pytest.raises(KeyboardInterrupt):
        run_search(make_search(tmp_path / "cut", before, *"abcde"))
    found = run_search(make_search(tmp_path / "cut", rest, *"abcde"))
    assert before.made + rest.made == whole.made
    assert found.comparison == expected.comparison
    assert expected.comparison is not None
    assert expected.comparison.figures.keys() == {AS_IT_IS, "b", "c", "a+b"}


def test_without_the_profile_as_it_is_nothing_is_compared(tmp_path: Path) -> None:
    """If the profile as it is fails, the search ends, and the next one tries it again."""
    broken = StandIn({}, failing={AS_IT_IS: "out of memory"})
    with pytest.raises(BaseFailedError, match=r"the profile as it is: out of memory; see .*serve.log, mend that first"):
        run_search(make_search(tmp_path, broken, "other"))
    mended = StandIn({})
    run_search(make_search(tmp_path, mended, "other"))
    assert [name for _, _, name in mended.made].count(AS_IT_IS) == 3


def test_the_budget_ends_a_search_between_rounds(tmp_path: Path) -> None:
    """Only rounds that the rest of the budget holds begin; a larger budget goes on."""
    run = StandIn({"fast": 1.06})
    job = make_search(tmp_path, run, "fast", budget_s=4 * 300 + 200)
    found = run_search(job)
    assert (len(run.made), found.spent) == (4, True)
    assert found.comparison is not None
    assert found.comparison.rounds == 2
    assert "a larger --budget goes on" in report_text("throughput", found, ())
    assert not run_search(replace(job, budget_s=6 * 300)).spent
    assert len(run.made) == 6


def test_a_budget_that_ends_before_the_final(tmp_path: Path) -> None:
    """The report has the screening, and no result."""
    found = run_search(make_search(tmp_path, StandIn({"a": 1.1}), *"abcde", budget_s=6 * 390))
    assert found.comparison is None
    text = report_text("throughput", found, ())
    assert "no result: the budget was spent before the final" in text
    assert "screening 1, measured once each: a +" in text


def test_the_report_in_other_forms(tmp_path: Path) -> None:
    """Markdown is a table, and JSON has every figure and null for what is unknown."""
    found = run_search(make_search(tmp_path, StandIn({"fast": 1.06}), "fast", rounds=1))
    assert found.comparison is not None
    assert "| fast | " in report_markdown("throughput", found, ())
    assert "measured once, so that noise cannot be told from a difference" in report_text("throughput", found, ())
    assert '"high": null' in report_json("throughput", found, ())


def test_another_question_is_noticed(tmp_path: Path) -> None:
    """A folder holds one search: other candidates or another GPU are rejected by name."""
    state = StateFolder(tmp_path)
    state.remember({"goal": "energy", "GPU": "L4", "candidates": ["a"]}, {"schedule": {}})
    assert state.recall({"goal": "energy", "GPU": "L4", "candidates": ["a"]}) == {"schedule": {}}
    with pytest.raises(ConfigurationError) as error:
        state.recall({"goal": "energy", "GPU": "H100", "candidates": ["a", "b"]})
    assert [each.message.partition(":")[0] for each in error.value.findings] == [
        "this search was begun with other GPU",
        "this search was begun with other candidates",
    ]


def test_two_searches_in_one_folder(tmp_path: Path) -> None:
    """The second one is rejected with what to do."""
    with (
        StateFolder(tmp_path).alone(),
        pytest.raises(PreflightError, match="another servekit tune uses it; wait until it is done"),
        StateFolder(tmp_path).alone(),
    ):
        pass


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    """The message names the file, and what to delete."""
    state = StateFolder(tmp_path)
    with state.alone():
        (tmp_path / "runs" / "0-1-a").mkdir()
        (tmp_path / "runs" / "0-1-a" / "run.json").write_text("{")
        with pytest.raises(ConfigurationError, match="is not the record of a start; delete the folder"):
            state.trials()
