"""`servekit bench`: each standard load ranged once, then measured several times, the loads taking turns."""

import itertools
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servekit.errors import ConfigurationError, Finding
from servekit.measure.bench.loads import Generator, Load
from servekit.measure.record import Record
from servekit.measure.recording.sampling import find_status
from servekit.measure.recording.session import Job, measure

_RANGING_STREAMS: Final = 4
"""The first ranging run has this many requests for each stream."""
_RANGING_SHARE: Final = 0.1
"""Of a run's time: a ranging run that was shorter is repeated with more requests."""
_MARGIN: Final = 1.1
"""A run has more requests than its rate gives by this, so that it is not too short."""
_WARM_UP_S: Final = 30
_SEED: Final = 20_260_101
_LARGEST_STEP: Final = 1000
"""Between the seeds of two loads; ranging runs, warm-ups and repetitions take the seeds in between."""
_AGAIN_STEP: Final = 20
"""Between the seeds of two attempts: an attempt finds no prompt of the one before in the prefix cache."""


@dataclass(frozen=True)
class Bench:
    """What to measure, and where the records go."""

    loads: Sequence[Load]
    repetitions: int
    seconds: float
    """Of each run, at least: one that was shorter is measured again with more requests."""
    idle_s: float
    folder: Path
    observe_url: str
    generator: Generator
    variables: Mapping[str, str] = field(default_factory=dict)
    """For the load generator: the key. Never in a command line."""
    report: Callable[[str], None] = print

    @property
    def about_s(self) -> float:
        """How long it takes at least, without starts of the engine."""
        run_s = self.idle_s + 2 * min(_WARM_UP_S, self.seconds) + _MARGIN * self.seconds
        return len(self.loads) * (self.repetitions * run_s + _RANGING_SHARE * self.seconds)


def find_generator(
    observe_url: str, engine: str, *, endpoint: str | None = None, tokenizer: str | None = None
) -> tuple[Generator, bool]:
    """Return the load generator for a running endpoint, and whether that endpoint wants a key.

    `endpoint` and `tokenizer` replace what servekit reports. Raises ConfigurationError where no servekit answers.
    """
    status = find_status(observe_url)
    if not status:
        remedy = "start the endpoint first, or name it by --observe URL"
        raise ConfigurationError([Finding("no answer of servekit", observe_url, remedy=remedy)])
    url = (endpoint or status["endpoint"]).rstrip("/").removesuffix("/v1")
    found = Generator(engine, url, status["served_name"], tokenizer or status["plan"]["model"])
    return found, bool(status["plan"]["authentication"])


def run_bench(bench: Bench) -> Iterator[tuple[Path, Record | None, int]]:
    """Yield the path, the record and the exit code of each run; it ends with one that was interrupted.

    Raises ConfigurationError where the load generator fails or a record exists already.
    """
    bench.folder.mkdir(parents=True, exist_ok=True)
    runs = [
        (load, repetition, bench.folder / f"{load.name}-{repetition}.json")
        for repetition in range(1, bench.repetitions + 1)
        for load in bench.loads
    ]
    if there := [path for _, _, path in runs if path.exists()]:
        raise ConfigurationError(
            [Finding("exists already", file=str(path), remedy="choose another --dir") for path in there]
        )
    rates = {}
    for number, load in enumerate(bench.loads):
        rates[load] = _range(bench, load, _seed(number))
        bench.report(f"bench: {load.name}: {rates[load]:.2f} requests/s in the ranging run")
    for load, repetition, path in runs:
        seed = _seed(bench.loads.index(load)) + repetition
        for attempt in itertools.count():
            bench.report(f"bench: {path}")
            job = _job(bench, load, rates[load], path, seed + attempt * _AGAIN_STEP)
            record, code = measure(job)
            if record is None or record.interrupted or code or record.run.duration_s >= bench.seconds:
                break
            rates[load] *= bench.seconds / record.run.duration_s
            bench.report(f"bench: {path}: {record.run.duration_s:.0f} s are too short, again with more requests")
            job.out.unlink()
            job.trace_file.unlink()
        yield path, record, code
        if record is None or record.interrupted:
            return


def requests_for(load: Load, rate: float, seconds: float) -> int:
    """Return how many requests take so many seconds: whole rounds of all streams, at least two."""
    return load.streams * max(2, math.ceil(rate * seconds / load.streams))


def _job(bench: Bench, load: Load, rate: float, path: Path, seed: int) -> Job:
    """Return the measured run of a load; equal repetitions of two endpoints have equal prompts."""
    warm_up_s = min(_WARM_UP_S, bench.seconds)
    return Job(
        name=load.name,
        out=path,
        command=bench.generator.command(load, requests_for(load, rate, _MARGIN * bench.seconds), seed),
        warm_up=bench.generator.command(load, requests_for(load, rate, warm_up_s), seed + _LARGEST_STEP // 2),
        idle_s=bench.idle_s,
        url=bench.observe_url,
        variables=bench.variables,
    )


def _range(bench: Bench, load: Load, seed: int) -> float:
    """Return the requests a second of the first ranging run that is long enough to tell them."""
    requests = _RANGING_STREAMS * load.streams
    for attempt in itertools.count():
        result = _generate(bench, load, requests, seed + attempt * _AGAIN_STEP)
        rate, wanted_s = float(result["request_throughput"]), _RANGING_SHARE * bench.seconds
        if requests >= rate * wanted_s:
            return rate
        requests = requests_for(load, rate, 2 * wanted_s)
    raise AssertionError


def _generate(bench: Bench, load: Load, requests: int, seed: int) -> dict[str, Any]:
    """Return what the load generator reports; it leaves out what it sends first to warm up."""
    with tempfile.TemporaryDirectory(prefix="servekit-bench-") as folder:
        warm_up = ("--num-warmups", str(load.streams))
        extra = (*warm_up, "--save-result", "--result-dir", folder, "--result-filename", "ranging.json")
        command = bench.generator.command(load, requests, seed, *extra)
        environ = {**os.environ, **bench.variables}
        ended = subprocess.run(
            command,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        try:
            result: dict[str, Any] = json.loads((Path(folder) / "ranging.json").read_text(encoding="utf-8"))
        except OSError:
            result = {}
    if ended.returncode or not result.get("completed"):
        last = "; ".join(ended.stdout.strip().splitlines()[-3:])
        message = f"the load generator ended with exit code {ended.returncode} and without an answered request"
        raise ConfigurationError([Finding(message, load.name, got=last)])
    return result


def _seed(number: int) -> int:
    return _SEED + number * _LARGEST_STEP
