"""One measurement: idle time, the command, and the trace of both."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

from servekit import __version__
from servekit.errors import ConfigurationError, Finding
from servekit.measure.figures.compute import compute_record
from servekit.measure.figures.counters import total
from servekit.measure.figures.work import GAUGES, TOKENS
from servekit.measure.record import Record
from servekit.measure.recording.identity import describe, endpoint_gpus, engine_here
from servekit.measure.recording.progress_line import ProgressLine
from servekit.measure.recording.sampling import (
    INTERVAL_S,
    SCRAPE_S,
    GpuReader,
    Scraper,
    Ticker,
    endpoint_processes,
    find_status,
)
from servekit.measure.recording.scores import SCORES_VARIABLE, read_scores
from servekit.measure.recording.second_reader import SecondReader
from servekit.measure.trace import FORMAT, SUFFIX, TraceWriter, read_trace
from servekit.nvml import NVML, Nvml

_SETTLE_S: Final = 5.0
"""How long to wait for the last requests to leave the engine once the command has ended."""
_AFTER_S: Final = 1.0
"""The readings go on for this long: the energy at the end lies between two steps of the counter."""
_MOST_WARM_UPS: Final = 20
_SETTLED_C: Final = 1.0
"""The temperature has settled when it changes by less than this from one warm-up to the next."""
_POLL_S: Final = 0.1
_SHOW_S: Final = 1.0
_LOCAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_IN_FLIGHT: Final = (GAUGES["running"], GAUGES["waiting"], "servekit_guard_in_flight")


@dataclass(frozen=True)
class Job:
    """What to measure."""

    name: str
    out: Path
    """The record; the trace is beside it."""
    command: Sequence[str]
    idle_s: float
    url: str
    """servekit's own server; the engine's if there is no servekit."""
    bare: bool = False
    """Whether there is no servekit at `url`."""
    warm_up: Sequence[str] = ()
    """A command that runs again and again between idle time and run, until the GPUs' temperature has settled."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the commands get besides this environment; not in the record."""
    facts: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False
    codecarbon_s: float | None = None
    """Seconds between two readings of CodeCarbon; None: without it."""

    @property
    def trace_file(self) -> Path:
        """The raw trace of the record."""
        return self.out.with_name(self.out.name.removesuffix(".json") + SUFFIX)


def measure(job: Job, *, nvml: Nvml = NVML) -> tuple[Record | None, int]:
    """Measure the command and write the record; return it, and the exit code of the command.

    The record is None if the measurement was interrupted before the command began. Raises ConfigurationError where
    nothing can be measured.
    """
    page, status = _look(job)
    local = urlsplit(job.url).hostname in _LOCAL
    gpus = endpoint_gpus(page, status, local=local, nvml=nvml)
    identity = describe(status, page, gpus, job.facts, environ=os.environ)
    here = [gpu.uuid for gpu in gpus if nvml.processes(gpu.uuid) is not None or nvml.read(gpu.uuid).power_w is not None]
    second = None if job.codecarbon_s is None else _second_reader(here, job.codecarbon_s, nvml)
    trace = TraceWriter(job.trace_file)
    try:
        trace.write(
            "begin",
            format=FORMAT,
            name=job.name,
            command=list(job.command),
            servekit=__version__,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            interval_s=INTERVAL_S,
            scrape_s=SCRAPE_S,
        )
        trace.write("identity", identity=identity.model_dump(mode="json"))
        at_first = {pid for uuid in here for pid in nvml.processes(uuid) or ()}
        reader = GpuReader(here, trace, endpoint_processes(engine_here(status), at_first), nvml)
        run = _Run(job, trace, reader, Scraper(f"{job.url}/metrics", trace), second)
        code = run.run()
    finally:
        trace.close()
    if code is None:
        job.trace_file.unlink()
        return None, 128 + signal.SIGINT
    record = compute_record(read_trace(job.trace_file))
    job.out.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record, code


def _look(job: Job) -> tuple[dict[str, str], dict[str, object]]:
    """Return the metrics page and the status; raise ConfigurationError for all that prevents a measurement."""
    mistakes = [
        Finding("exists already", file=str(path), remedy="choose another --out")
        for path in (job.out, job.trace_file)
        if path.exists()
    ]
    if not shutil.which(job.command[0]):
        mistakes.append(Finding("no such command", got=job.command[0], remedy="give a program on the PATH, or a path"))
    page = Scraper(f"{job.url}/metrics").scrape()
    status = {} if job.bare else find_status(job.url)
    if page is None or status is None:
        what = "vLLM's /metrics" if job.bare else "servekit"
        remedy = "start the endpoint first, or name it by --observe URL or --endpoint URL"
        mistakes.append(Finding(f"no answer of {what}", job.url, remedy=remedy))
    elif status and not status["ready"]:
        mistakes.append(Finding(f"the endpoint is not ready: {status['state']}", job.url, remedy="wait until it is"))
    if mistakes:
        raise ConfigurationError(mistakes)
    assert page is not None
    assert status is not None
    return page, status


def _second_reader(gpus: Sequence[str], interval_s: float, nvml: Nvml) -> SecondReader:
    survey = nvml.survey()
    return SecondReader([gpu.index for gpu in survey.gpus if gpu.uuid in gpus] if survey else (), interval_s)


class _Run:
    """The threads and the command of one measurement."""

    def __init__(
        self, job: Job, trace: TraceWriter, reader: GpuReader, scraper: Scraper, second: SecondReader | None
    ) -> None:
        self._job, self._trace, self._reader, self._scraper, self._second = job, trace, reader, scraper, second
        self._child: subprocess.Popen[bytes] | None = None
        self._signals: list[int] = []

    def run(self) -> int | None:
        """Return the command's exit code; None if it never began."""
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            stack.enter_context(Ticker("gpu", INTERVAL_S, self._reader.read))
            self._scraper.scrape()
            stack.enter_context(Ticker("scrape", SCRAPE_S, self._scraper.scrape))
            progress = ProgressLine(self._reader, self._scraper, quiet=self._job.quiet)
            self._trace.write("phase", phase="idle") if self._job.idle_s else None
            end_s = time.monotonic() + self._job.idle_s
            while (left_s := end_s - time.monotonic()) > 0 and not self._signals:
                progress.idle()
                time.sleep(min(_POLL_S, left_s))
            if self._signals:
                return None
            if self._job.warm_up:
                self._warm_up(progress)
            if self._signals:
                return None
            with tempfile.TemporaryDirectory(prefix="servekit-measure-") as folder:
                return self._measure(Path(folder) / "scores.json", progress)

    def _warm_up(self, progress: ProgressLine) -> None:
        self._trace.write("phase", phase="warm-up")
        progress.begin()
        before_c = None
        for _ in range(_MOST_WARM_UPS):
            self._call(self._job.warm_up, progress)
            now_c = self._reader.temperature_c
            if self._signals or now_c is None or (before_c is not None and abs(now_c - before_c) < _SETTLED_C):
                break
            before_c = now_c

    def _measure(self, scores: Path, progress: ProgressLine) -> int:
        self._settle(at_least_s=0)
        if self._second:
            self._second.start()
        self._trace.write("phase", phase="run")
        progress.begin()
        code = self._call(self._job.command, progress, {SCORES_VARIABLE: str(scores)})
        self._trace.write("phase", phase="after")
        if self._second:
            self._second.stop(self._trace)
        progress.end()
        self._settle(at_least_s=_AFTER_S)
        if found := read_scores(scores):
            self._trace.write("scores", scores=found)
        self._trace.write("ended", exit_code=code, interrupted=bool(self._signals))
        return code

    def _call(self, command: Sequence[str], progress: ProgressLine, variables: Mapping[str, str] | None = None) -> int:
        """Run a command to its end; return its exit code, 128 and the number of the signal that ended it."""
        environ = {**os.environ, **self._job.variables, **(variables or {})}
        self._child = child = subprocess.Popen(command, env=environ)
        if self._signals:  # it came before the command was there
            child.terminate()
        while child.poll() is None:
            progress.run()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_SHOW_S)
        return child.returncode if child.returncode >= 0 else 128 - child.returncode

    def _settle(self, *, at_least_s: float) -> None:
        """Wait until the engine is empty, so that its counters have the last request; scrape once more."""
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < _SETTLE_S:
            page = self._scraper.scrape() or {}
            empty = total(page, TOKENS) is not None and not any(total(page, name) for name in _IN_FLIGHT)
            if empty and passed_s >= at_least_s:
                return
            time.sleep(_POLL_S)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)
        if self._child is None or self._child.returncode is not None:
            return
        if len(self._signals) > 1:
            self._child.kill()
        elif number == signal.SIGTERM or not sys.stdin.isatty():  # a terminal sends Ctrl-C to the command as well
            self._child.send_signal(number)
