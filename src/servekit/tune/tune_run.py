"""One `servekit tune`, from what was asked to the report and the profile file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from servekit.measure.bench.loads import Load
from servekit.profile import Profile
from servekit.serve.guard.keys import client_key, own_key_file
from servekit.settings import Settings
from servekit.tune.candidates import AS_IT_IS, Candidate, LeftOut
from servekit.tune.preparation import Prepared, prepare, question
from servekit.tune.profile_text import write_candidate
from servekit.tune.schedule import Schedule, fit
from servekit.tune.search import Found, Run, Search, search
from servekit.tune.state_folder import StateFolder
from servekit.tune.trial_run import Runner
from servekit.tune.tune_report import changes, estimate_text, plan_text, reasons, report_json, report_markdown

_START_S: Final = {"cuda": 120.0, "cpu": 45.0}
"""About how long a start takes."""
BEST: Final = "best.yaml"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the operator asked for."""

    goal: str
    loads: Sequence[Load]
    seconds: float
    warm_up_s: float
    rounds: int
    budget_s: float
    own: Sequence[Path]
    """Candidates of the operator's own; empty: servekit's."""
    folder: Path
    settings: Settings
    profile: Profile
    words: Callable[[Candidate, Path], Sequence[str]]
    """The flags of `servekit serve` for a candidate, without its profile; the state folder is given."""
    observe_url: str
    report: Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """What came of it."""

    found: Found
    left_out: Sequence[LeftOut]
    best: Path | None
    """The profile file of the winner; None where the profile as it is stays."""


@dataclass(frozen=True)
class _Begun:
    state: StateFolder
    prepared: Prepared
    schedule: Schedule
    left_out: Sequence[LeftOut]

    @property
    def candidates(self) -> Sequence[Candidate]:
        return self.prepared.candidates[: self.schedule.candidates]


def describe(request: Request) -> str:
    """Return what a search would do. Writes into the request's folder, but starts nothing."""
    with _begun(request) as begun:
        return plan_text(begun.candidates, begun.left_out, begun.schedule)


def tune(request: Request, *, make_run: Callable[[Runner], Run] = lambda runner: runner) -> Tuned:
    """Search, or go on with a search that was interrupted; write report and profile.

    `make_run` returns what starts the candidates. Raises ServekitError and KeyboardInterrupt; what is done by then is
    kept.
    """
    with _begun(request) as begun:
        request.report(f"tune: {estimate_text(begun.schedule)}; results in {request.folder}")
        keys = request.settings.api_keys_file or own_key_file(begun.state.serve_state)
        known = {name: rate for trial in begun.state.trials() for name, rate in trial.rates.items()}
        runner = Runner(
            words=lambda candidate: request.words(candidate, begun.state.serve_state),
            goal=request.goal,
            plan=begun.prepared.plan,
            loads=request.loads,
            warm_up_s=request.warm_up_s,
            observe_url=request.observe_url,
            keys=lambda: client_key(keys),
            report=request.report,
            rates={load: known[load.name] for load in request.loads if load.name in known},
        )
        job = Search(
            goal=request.goal,
            schedule=begun.schedule,
            candidates=begun.candidates,
            state=begun.state,
            write_profile=lambda candidate: _write(request, begun, candidate),
            run=make_run(runner),
            budget_s=request.budget_s,
            report=request.report,
        )
        found = search(job)
        best = _write_best(request, begun, found)
        begun.state.write("report.md", report_markdown(request.goal, found, begun.left_out))
        begun.state.write("report.json", report_json(request.goal, found, begun.left_out))
        return Tuned(found, begun.left_out, best)


@contextmanager
def _begun(request: Request) -> Iterator[_Begun]:
    """Hold the folder; give the search in it as it was begun, or begin one that the budget holds."""
    state = StateFolder(request.folder.absolute())
    with state.alone():
        settings = request.settings.model_copy(update={"state_dir": state.serve_state})
        prepared = prepare(request.profile, settings, request.goal, request.loads, request.own, state.candidates)
        lengths = {"seconds": request.seconds, "warm-up": request.warm_up_s, "rounds": request.rounds}
        asked = question(prepared, request.goal, request.loads, lengths)
        if before := state.recall(asked):
            schedule = Schedule(**before["schedule"])
        else:
            wanted = Schedule(
                candidates=len(prepared.candidates),
                rounds=request.rounds,
                seconds=request.seconds,
                loads=len(request.loads),
                start_s=_START_S[prepared.plan.target],
                warm_up_s=request.warm_up_s,
            )
            schedule = fit(wanted, request.budget_s)
            state.remember(asked, {"schedule": asdict(schedule)})
        short = [LeftOut(each.name, "the budget is too short") for each in prepared.candidates[schedule.candidates :]]
        yield _Begun(state, prepared, schedule, (*prepared.left_out, *short))


def _write(request: Request, begun: _Begun, candidate: Candidate) -> Path:
    path = begun.state.candidates / f"{candidate.name}.yaml"
    deviate = request.settings.deviate
    write_candidate(path, begun.prepared.profile, candidate.changes, heading=(candidate.reason,), deviate=deviate)
    return path


def _write_best(request: Request, begun: _Begun, found: Found) -> Path | None:
    """Write the winner's profile; delete an older one where the profile as it is has won."""
    path = begun.state.folder / BEST
    path.unlink(missing_ok=True)
    winner = found.comparison.winner if found.comparison else AS_IT_IS
    if winner == AS_IT_IS:
        return None
    candidate = next(each for each in found.candidates if each.name == winner)
    why = reasons(candidate, found, request.goal)
    plan, names = begun.prepared.plan, ", ".join(load.name for load in request.loads)
    card = plan.gpu.name if plan.gpu else plan.target.value
    heading = [
        f"Found by servekit tune on {datetime.now(UTC):%Y-%m-%d}, on {card}, with {names}: {changes(candidate)}."
    ]
    if candidate.settings:
        heading += ["It needs servekit's own settings too:", *why]
        heading += [f"SERVEKIT_{name.upper()}={value}" for name, value in candidate.settings.items()]
    deviate = request.settings.deviate
    write_candidate(path, begun.prepared.profile, candidate.changes, heading=(*heading, ""), why=why, deviate=deviate)
    return path
