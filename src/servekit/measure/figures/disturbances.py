"""What disturbed a run: found in the trace, told in the record, and marked by `servekit report`."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from servekit.measure.figures.counters import follow
from servekit.measure.figures.gpu_trace import GpuTrace, Reading
from servekit.measure.figures.windows import Moments
from servekit.measure.figures.work import GAUGES, STARTED, work_between
from servekit.measure.record import CodeCarbon, Disturbance, Window
from servekit.measure.trace import Trace

_SILENT_S: Final = 5.0
_CLOCK_DRIFT: Final = 0.05
_QUARTERS: Final = 4
_DISAGREEMENT: Final = 0.02
_GAPS: Final = 0.01
"""Share of the run."""
_MIB: Final = 1 << 20

Span = tuple[str, float, float, str]
"""Kind, beginning and end in the trace's seconds, and what it was."""


def find_disturbances(
    trace: Trace, moments: Moments, gpus: Sequence[GpuTrace], run: Window, second: CodeCarbon | None = None
) -> list[Disturbance]:
    """Return what makes the run less comparable, in order of time."""
    spans = itertools.chain(
        _command(trace, moments),
        _foreign_processes(trace, moments),
        *(_gpu(each, moments) for each in gpus),
        _engine(trace, moments),
        _energy(run, moments),
        _codecarbon(second, moments),
    )
    return [
        Disturbance(kind=kind, begin_s=begin - moments.begin, end_s=end - moments.begin, what=what)
        for kind, begin, end, what in sorted(spans, key=lambda each: each[1])
    ]


def _command(trace: Trace, moments: Moments) -> Iterator[Span]:
    ended = trace.one("ended")
    if not ended:
        yield "cut-off", moments.run, moments.after, "servekit measure was killed: the record ends with its trace"
    elif ended["interrupted"]:
        yield "interrupted", moments.after, moments.after, "the measurement was interrupted"
    elif ended["exit_code"]:
        yield "command-failed", moments.after, moments.after, f"the command ended with exit code {ended['exit_code']}"


def _foreign_processes(trace: Trace, moments: Moments) -> Iterator[Span]:
    """Yield each time in which a process that is not the endpoint's was on one of its GPUs."""
    open_spans: dict[tuple[str, str], tuple[float, str]] = {}
    for event in trace.all("processes"):
        now = {(event["gpu"], pid): size for pid, size in event["others"].items()}
        for key in [key for key in open_spans if key[0] == event["gpu"] and key not in now]:
            begin, what = open_spans.pop(key)
            yield "foreign-process", begin, event["t"], what
        for (gpu, pid), size in now.items():
            what = f"process {pid} used {gpu}, {size / _MIB:,.0f} MiB when it was seen first"
            open_spans.setdefault((gpu, pid), (event["t"], what))
    for begin, what in open_spans.values():
        yield "foreign-process", begin, moments.after, what


def _gpu(gpu: GpuTrace, moments: Moments) -> Iterator[Span]:
    readings = gpu.inside(moments.run, moments.after)
    for reason in sorted({reason for each in readings for reason in each.get("slowdowns") or ()}):
        for begin, end in _while([(each["t"], reason in (each.get("slowdowns") or ())) for each in readings]):
            yield "slowdown", begin, end, f"{gpu.uuid}: {reason}"
    for begin, end in _while([(each["t"], _empty(each)) for each in readings]):
        yield "gpu-unreadable", begin, end, f"{gpu.uuid}: NVML returned no reading"
    counter = [(each["t"], each["energy_j"]) for each in readings if each.get("energy_j") is not None]
    for (_, before), (t, now) in itertools.pairwise(counter):
        if now < before:
            yield "counter-reset", t, t, f"{gpu.uuid}: the energy counter fell from {before:,.0f} J to {now:,.0f} J"
    yield from _changes(gpu, "power_limit_w", "power limit", "W", moments.run, moments.after)
    if moments.steady:
        yield from _changes(gpu, "memory_clock_mhz", "memory clock", "MHz", *moments.steady)
        yield from _drift(gpu, *moments.steady)


def _changes(gpu: GpuTrace, field: str, name: str, unit: str, start_s: float, end_s: float) -> Iterator[Span]:
    known = [(each["t"], each[field]) for each in gpu.inside(start_s, end_s) if each.get(field) is not None]
    for (_, before), (t, now) in itertools.pairwise(known):
        if now != before:
            what = f"{gpu.uuid}: the {name} changed from {before:,.0f} {unit} to {now:,.0f} {unit}"
            yield "clock-changed" if unit == "MHz" else "power-limit-changed", t, t, what


def _drift(gpu: GpuTrace, start_s: float, end_s: float) -> Iterator[Span]:
    """Yield a change of the SM clock between the quarters of the steady window: the power limit alone moves it less."""
    edge = (end_s - start_s) / _QUARTERS
    parts = [gpu.values("sm_clock_mhz", start_s + edge * n, start_s + edge * (n + 1)) for n in range(_QUARTERS)]
    if not all(parts):
        return
    medians = [statistics.median(part) for part in parts]
    if max(medians) > (1 + _CLOCK_DRIFT) * min(medians):
        words = ", ".join(f"{each:,.0f}" for each in medians)
        yield "clock-changed", start_s, end_s, f"{gpu.uuid}: the SM clock's medians by quarters were {words} MHz"


def _engine(trace: Trace, moments: Moments) -> Iterator[Span]:
    answers = [moments.run, *(each.t for each in trace.scrapes if each.changed is not None and each.t >= moments.run)]
    for before, now in itertools.pairwise([*(t for t in answers if t <= moments.after), moments.after]):
        if now - before > _SILENT_S:
            yield "endpoint-silent", before, now, f"its metrics could not be read for {now - before:.0f} s"
    started = [(t, row[STARTED]) for t, row in follow(trace, (STARTED,)) if row[STARTED] and t >= moments.begin]
    for (_, before), (t, now) in itertools.pairwise(started):
        if now != before:
            yield "engine-restart", t, t, "the engine's server was started again"
    names = (GAUGES["running"], GAUGES["waiting"])
    present = [(t, sum(each or 0.0 for each in row.values())) for t, row in follow(trace, names)]
    first = [number for t, number in present if t <= moments.run][-1:]
    if any(first):
        yield "not-empty-before", moments.run, moments.run, f"{first[0]:.0f} requests were there before the command"
    last_s, last = present[-1] if present else (0.0, 0.0)
    if last and last_s >= moments.after:
        yield "not-empty-after", moments.after, last_s, f"{last:.0f} requests were there after its end"
    if moments.idle is not None:
        work = work_between(*trace.pages_at(*moments.idle))
        if work and (work.output_tokens or work.prompt_tokens):
            what = f"the engine generated {work.output_tokens} tokens for clients while it should have been idle"
            yield "not-idle", *moments.idle, what


def _energy(run: Window, moments: Moments) -> Iterator[Span]:
    for gpu in run.energy.gpus:
        if gpu.gaps.total_s > _GAPS * run.duration_s:
            what = f"{gpu.uuid}: {gpu.gaps.count} gaps in the power trace, {gpu.gaps.total_s:.0f} s in all"
            yield "trace-gaps", moments.run, moments.after, what
        if gpu.disagreement is not None and abs(gpu.disagreement) > _DISAGREEMENT:
            what = f"{gpu.uuid}: the integral of power differs by {gpu.disagreement:+.1%} from the energy counter"
            yield "energy-disagrees", moments.run, moments.after, what


def _empty(reading: Reading) -> bool:
    return reading.get("energy_j") is None and reading.get("power_w") is None


def _while(states: Sequence[tuple[float, bool]]) -> Iterator[tuple[float, float]]:
    """Yield the beginning and the end of each time in which a state held."""
    for held, group in itertools.groupby(states, key=lambda each: each[1]):
        times = [t for t, _ in group]
        if held:
            yield times[0], times[-1]


def _codecarbon(second: CodeCarbon | None, moments: Moments) -> Iterator[Span]:
    if second is None:
        return
    if second.disagreement is None or abs(second.disagreement) > _DISAGREEMENT:
        how = "nothing" if second.joules is None else f"{second.joules:,.0f} J"
        what = f"CodeCarbon read {how}, the energy counter {second.counter_j or 0:,.0f} J"
        yield "codecarbon-disagrees", moments.run, moments.after, what
    for line in second.warnings:
        yield "codecarbon-warns", moments.run, moments.after, line
