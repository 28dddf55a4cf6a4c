"""One start of a candidate: `servekit serve` as a process of its own, the loads on it, and its end."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from servekit.errors import ConfigurationError, Finding, PreflightError
from servekit.measure.bench.loads import Load
from servekit.measure.bench.serving import PROGRAM
from servekit.measure.bench.standard import find_generator, requests_for
from servekit.measure.record import Record
from servekit.measure.recording.sampling import find_status
from servekit.measure.recording.session import Job, measure
from servekit.nvml import NVML, Nvml
from servekit.preflight.host.gpus import visible_gpus
from servekit.preflight.host.ports import check_ports
from servekit.serve.engine.process import Engine
from servekit.serve.plan import Plan
from servekit.serve.start_check import occupied
from servekit.tune.candidates import Candidate
from servekit.tune.goals import GOALS
from servekit.tune.schedule import Stage
from servekit.tune.state_folder import Trial

_SEED: Final = 20_260_301
_RANGING, _WARM_UP, _RUN, _PARTS = range(4)
_SEEDS_APART: Final = 1000
_RANGING_ROUNDS: Final = 4
"""The first run of a load, which finds its rate, has this many requests for each stream."""
_POLL_S: Final = 0.5
_FREE_S: Final = 30.0
"""How long the port and the GPU of the last candidate may take until they are free."""
_DEATH_S: Final = 15.0
"""How long servekit may take to report why an engine answers no more."""
_KILL_S: Final = 30.0
_LAST_LINES: Final = 400


@dataclass(frozen=True)
class Runner:
    """Starts candidates one after the other and measures each."""

    words: Callable[[Candidate], Sequence[str]]
    """The flags of `servekit serve` for a candidate, as the operator gave them."""
    goal: str
    plan: Plan
    """Of the unchanged profile, with this search's own state folder."""
    loads: Sequence[Load]
    warm_up_s: float
    observe_url: str
    keys: Callable[[], str]
    """Returns a client's key, once the endpoint is ready."""
    report: Callable[[str], None]
    nvml: Nvml = NVML
    rates: dict[Load, float] = field(default_factory=dict)
    """Requests a second, which the first run of each load finds: from then on all get the same number of requests."""

    def __call__(self, candidate: Candidate, profile: Path, stage: Stage, number: int, folder: Path) -> Trial:
        """Start the candidate, measure it, and stop it.

        Raises PreflightError if something else uses the port or the GPU, and KeyboardInterrupt.
        """
        self.refuse_taken(within_s=_FREE_S)
        began, began_s, known = datetime.now(UTC), time.monotonic(), set(self.rates)
        with closing(
            _Served(
                [*PROGRAM, "serve", *self.words(candidate), "--config", str(profile)],
                candidate,
                folder,
                self.plan.stop_s,
            )
        ) as served:
            failure = served.until_ready(self.observe_url)
            start_s = time.monotonic() - began_s
            records: dict[Load, Record] = {}
            if not failure:
                failure = self._measure(stage, folder, records)
                failure = served.failure(within_s=_DEATH_S if failure else 0) or failure
        return Trial(
            candidate=candidate.name,
            stage=stage.number,
            round=number,
            began=began.isoformat(timespec="seconds"),
            start_s=start_s,
            total_s=time.monotonic() - began_s,
            failure=failure,
            figures={} if failure else {load.name: _figures(record) for load, record in records.items()},
            disturbances=[
                f"{load.name}: {each.what}" for load, record in records.items() for each in record.disturbances
            ],
            rates={load.name: rate for load, rate in self.rates.items() if load not in known},
        )

    def refuse_taken(self, within_s: float = 0) -> None:
        """Raise PreflightError if another process has the port or the GPU, and still has it after these seconds."""
        end_s = time.monotonic() + within_s
        while taken := [*occupied(self.plan), *check_ports(self.plan.addresses), *self._users()]:
            if time.monotonic() > end_s:
                raise PreflightError(taken)
            time.sleep(_POLL_S)

    def _users(self) -> list[Finding]:
        watched = self.plan.survey and "gpu-processes" not in self.plan.skip
        survey = self.nvml.survey() if watched else None
        remedy = (
            "stop it first (a running endpoint: drain it by SIGTERM): whatever else uses the GPU falsifies the figures"
        )
        return [
            Finding(f"used by another process (pid {', '.join(map(str, gpu.processes))})", gpu.name, remedy=remedy)
            for gpu in (visible_gpus(survey) if survey else ())
            if gpu.processes
        ]

    def _measure(self, stage: Stage, folder: Path, records: dict[Load, Record]) -> str:
        """Fill in the record of each load; return why one has none."""
        try:
            generator, authenticated = find_generator(self.observe_url, self.plan.engine)
            key = self.keys() if authenticated else "none"
            for number, load in enumerate(self.loads):
                if load not in self.rates:
                    requests, path = _RANGING_ROUNDS * load.streams, folder / f"ranging-{load.name}.json"
                    record = self._job(generator.command(load, requests, _seed(number, _RANGING)), load, path, key)
                    if failure := self._failure(record, requests):
                        return f"{load.name}: {failure}"
                    self.rates[load] = (record.steady or record.run).requests_per_s or 0.0
                requests = requests_for(load, self.rates[load], stage.seconds)
                warm_up = requests_for(load, self.rates[load], self.warm_up_s)
                record = self._job(
                    generator.command(load, requests, _seed(number, _RUN)),
                    load,
                    folder / f"{load.name}.json",
                    key,
                    warm_up=generator.command(load, warm_up, _seed(number, _WARM_UP)) if self.warm_up_s else (),
                )
                if failure := self._failure(record, requests):
                    return f"{load.name}: {failure}"
                records[load] = record
        except ConfigurationError as error:  # the endpoint does not answer
            return str(error)
        return ""

    def _job(self, command: Sequence[str], load: Load, path: Path, key: str, *, warm_up: Sequence[str] = ()) -> Record:
        self.report(f"tune: {path.stem}")
        job = Job(
            name=load.name,
            out=path,
            command=command,
            idle_s=0,
            url=self.observe_url,
            warm_up=warm_up,
            variables={"OPENAI_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
        )
        record, _ = measure(job, nvml=self.nvml)
        if record is None or record.interrupted:
            raise KeyboardInterrupt
        return record

    def _failure(self, record: Record, wanted: int) -> str:
        """Return why a measurement says nothing; empty if it does."""
        goal, work = GOALS[self.goal], record.run.work
        if record.exit_code:
            return f"the load generator ended with exit code {record.exit_code}"
        if work is None:
            return record.engine.why or "the engine restarted"
        if work.requests < wanted:
            return f"{work.requests} of {wanted} requests were answered"
        return "" if goal.pick(record) else f"no {goal.figure}: {record.run.energy.why}"


def _seed(load: int, part: int) -> int:
    """Return the seed of a load's prompts: all candidates get the same, and no run those of an earlier one."""
    return _SEED + (load * _PARTS + part) * _SEEDS_APART


def _figures(record: Record) -> dict[str, float]:
    picked = {name: goal.pick(record) for name, goal in GOALS.items()}
    return {name: figure for name, figure in picked.items() if figure}


class _Served:
    """A `servekit serve` under a keeper, which ends it and all below it however this process ends."""

    def __init__(self, argv: Sequence[str], candidate: Candidate, folder: Path, stop_s: float) -> None:
        self._log = (folder / "serve.log").open("w", encoding="utf-8")
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._over = threading.Event()
        self._code: int | None = None
        self._stop_s = stop_s
        given = {f"SERVEKIT_{name.upper()}": value for name, value in candidate.settings.items()}
        self._engine = Engine(argv, {**os.environ, **given}, on_line=self._keep, on_exit=self._end)
        self._engine.start()

    def until_ready(self, observe_url: str) -> str:
        """Wait until clients may send requests; return why they never may. `serve` has a deadline of its own."""
        while not self._over.wait(_POLL_S):
            status: Mapping[str, object] = find_status(observe_url) or {}
            if status.get("ready"):
                return ""
        return self.failure()

    def failure(self, within_s: float = 0) -> str:
        """Return how the endpoint ended, or ends within these seconds; empty while it runs."""
        if not self._over.wait(within_s):
            return ""
        errors = [line for line in self._last if "error" in line.lower()] or [*self._last]
        return f"servekit serve ended with exit code {self._code}: {errors[-1] if errors else 'without a word'}"

    def close(self) -> None:
        """Drain and end it; kill it if it does not end."""
        if not self._over.is_set():
            self._engine.terminate()
        if not self._over.wait(self._stop_s + _KILL_S):
            self._engine.kill()
            self._over.wait(_KILL_S)
        self._log.close()

    def _keep(self, line: str) -> None:
        self._log.write(f"{line}\n")
        self._log.flush()
        self._last.append(line)

    def _end(self, code: int) -> None:
        self._code = code
        self._over.set()
