"""The moments of a measurement, and the figures of one window between two of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from servekit.measure.figures.counters import follow
from servekit.measure.figures.gpu_trace import GpuTrace, energy_between
from servekit.measure.figures.work import GAUGES
from servekit.measure.record import Efficiency, Window, Work
from servekit.measure.trace import Trace

_FULL: Final = 0.9
_WH: Final = 3600


@dataclass(frozen=True)
class Moments:
    """When the parts of a measurement began and ended, in the trace's seconds."""

    begin: float
    idle: tuple[float, float] | None
    """None without an idle phase; it ends with the warm-up or the run."""
    run: float
    after: float
    """The command's end; that of the last event if `measure` was killed before."""
    steady: tuple[float, float] | None


def find_moments(trace: Trace) -> Moments:
    """Return the moments of a trace."""
    run = trace.phases["run"]
    after = trace.phases.get("after", trace.last_s)
    idle = (trace.phases["idle"], trace.phases.get("warm-up", run)) if "idle" in trace.phases else None
    return Moments(trace.one("begin")["t"], idle, run, after, _steady(trace, run, after))


def _steady(trace: Trace, run: float, after: float) -> tuple[float, float] | None:
    """Return the first and the last scrape at which the endpoint was full; None if there are no two such scrapes."""
    names = (GAUGES["running"], GAUGES["waiting"])
    rows = follow(trace, names)
    requests = [(t, sum(each or 0.0 for each in values.values())) for t, values in rows if run <= t <= after]
    most = max((number for _, number in requests), default=0.0)
    full = [t for t, number in requests if number and number >= _FULL * most]
    return (full[0], full[-1]) if len(full) > 1 else None


def window(
    begin_s: float, end_s: float, work: Work | None, gpus: Sequence[GpuTrace], *, zero_s: float, idle_w: float | None
) -> Window:
    """Return the figures between two moments; `zero_s` is when the measurement began."""
    energy = energy_between(gpus, begin_s, end_s, idle_w)
    duration_s = end_s - begin_s
    return Window(
        begin_s=begin_s - zero_s,
        end_s=end_s - zero_s,
        duration_s=duration_s,
        work=work,
        output_tokens_per_s=work.output_tokens / duration_s if work and duration_s else None,
        requests_per_s=work.requests / duration_s if work and duration_s else None,
        energy=energy,
        efficiency=efficiency(energy.joules, work),
        efficiency_above_idle=efficiency(energy.above_idle_j, work),
    )


def efficiency(joules: float | None, work: Work | None) -> Efficiency:
    """Return energy by work, in joules and in watt-hours; null where either is missing or zero."""
    tokens, prompts, requests = (work.output_tokens, work.prompt_tokens, work.requests) if work else (0, 0, 0)

    def per(amount: int) -> float | None:
        return joules / amount if joules and amount > 0 else None

    def per_wh(amount: int) -> float | None:
        return amount / (joules / _WH) if joules and amount > 0 else None

    return Efficiency(
        j_per_output_token=per(tokens),
        j_per_total_token=per(tokens + prompts),
        j_per_request=per(requests),
        output_tokens_per_wh=per_wh(tokens),
        requests_per_wh=per_wh(requests),
    )
