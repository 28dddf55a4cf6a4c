"""From the raw trace to the record, without any other input: `servekit report --verify` calls the same function."""

import statistics

from servekit.measure.figures.disturbances import find_disturbances
from servekit.measure.figures.gpu_trace import GpuTrace, energy_between, gpu_traces
from servekit.measure.figures.windows import Moments, find_moments, window
from servekit.measure.figures.work import engine_between, gauge_ranges, work_between
from servekit.measure.record import CodeCarbon, GpuCondition, Identity, Idle, Record, TraceFile
from servekit.measure.trace import Trace

_NEAR_S = 2.0
"""The temperature before and after the run is the last one and the first one within this time."""


def compute_record(trace: Trace) -> Record:
    """Return the record of a trace in which the command has begun; raises KeyError for any other."""
    begin, ended, moments = trace.one("begin"), trace.one("ended"), find_moments(trace)
    identity = Identity.model_validate(trace.one("identity")["identity"])
    gpus = gpu_traces(trace, [each.uuid for each in identity.gpus])
    idle = _idle(gpus, moments)
    idle_w = idle.energy.mean_power_w if idle else None
    before, after = trace.pages_at(moments.run, ended.get("t", trace.last_s))
    if ended and not any(each.changed is not None and each.t >= moments.after for each in trace.scrapes):
        after = {}  # the last page is of an engine that did not answer any more when the command ended
    run = window(moments.run, moments.after, work_between(before, after), gpus, zero_s=moments.begin, idle_w=idle_w)
    steady = None
    if moments.steady:
        work = work_between(*trace.pages_at(*moments.steady))
        steady = window(*moments.steady, work, gpus, zero_s=moments.begin, idle_w=idle_w)
    second = _codecarbon(trace, gpus)
    return Record(
        name=begin["name"],
        measured_by=begin["servekit"],
        began=begin["time"],
        command=begin["command"],
        exit_code=ended.get("exit_code"),
        interrupted=ended.get("interrupted", False),
        identity=identity,
        idle=idle,
        run=run,
        steady=steady,
        engine=engine_between(before, after, gauge_ranges(trace, moments.run, moments.after)),
        conditions=[_condition(gpu, moments) for gpu in gpus],
        disturbances=find_disturbances(trace, moments, gpus, run, second),
        scores=trace.one("scores").get("scores", {}),
        codecarbon=second,
        trace=TraceFile(
            file=trace.file,
            sha256=trace.sha256,
            complete=trace.complete,
            readings=sum(len(gpu.readings) for gpu in gpus),
            scrapes=sum(scrape.changed is not None for scrape in trace.scrapes),
        ),
    )


def _idle(gpus: list[GpuTrace], moments: Moments) -> Idle | None:
    if moments.idle is None:
        return None
    begin_s, end_s = moments.idle
    return Idle(duration_s=end_s - begin_s, energy=energy_between(gpus, begin_s, end_s))


def _codecarbon(trace: Trace, gpus: list[GpuTrace]) -> CodeCarbon | None:
    if not (event := trace.one("codecarbon")):
        return None
    own_j, joules = energy_between(gpus, event["began_s"], event["t"]).joules, event["joules"]
    return CodeCarbon(
        version=event["version"],
        interval_s=event["interval_s"],
        joules=joules,
        counter_j=own_j,
        disagreement=joules / own_j - 1 if own_j and joules is not None else None,
        warnings=event["warnings"],
    )


def _condition(gpu: GpuTrace, moments: Moments) -> GpuCondition:
    run, after = moments.run, moments.after
    clocks = gpu.values("sm_clock_mhz", run, after)
    warm = gpu.values("temperature_c", run, after)
    powers = [each.watts for each in gpu.samples if run <= each.t <= after and each.watts is not None]
    return GpuCondition(
        uuid=gpu.uuid,
        temperature_before_c=next(reversed(gpu.values("temperature_c", run - _NEAR_S, run)), None),
        temperature_after_c=next(iter(gpu.values("temperature_c", after, after + _NEAR_S)), None),
        temperature_highest_c=max(warm, default=None),
        power_highest_w=max(powers, default=None),
        sm_clock_lowest_mhz=min(clocks, default=None),
        sm_clock_median_mhz=round(statistics.median(clocks)) if clocks else None,
        sm_clock_highest_mhz=max(clocks, default=None),
    )
