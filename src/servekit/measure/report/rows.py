"""The rows of the card's table: how each figure is taken from a record, written, and compared with the baseline."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from servekit.measure.record import Record
from servekit.measure.report.runs import Group
from servekit.measure.statistics import Spread, extremes

_GB: Final = 1e9
_SIGNIFICANT: Final = 4
BENCHMARK: Final = ("MMMU-Pro", "MMMU-Pro standard", "MMMU-Pro vision")
"""The scores with which the card's table begins: a report without them says so."""
_EQUAL: Final = 0.01
"""Figures that differ by less are told as equal, as the card does."""

Pick = Callable[[Record], float | None]
Style = Literal["share", "factor", "faster", "points", "near"]


@dataclass(frozen=True)
class Row:
    """One figure: its label with the unit, where it comes from, its format, and how a difference is written."""

    label: str
    source: str | Pick
    """Where the record has it, as dotted names, or how it follows from the record."""
    format: str
    style: Style
    absent: str = "unknown"
    """What a run without the figure has in its place."""

    def pick(self, record: Record) -> float | None:
        """Return the figure of a record; None where it is unknown."""
        return _at(record, self.source) if isinstance(self.source, str) else self.source(record)

    def spread(self, group: Group) -> Spread | None:
        """Return median, least and greatest of the runs that have the figure; None where none has it."""
        values = [value for run in group.runs if (value := self.pick(run.record)) is not None]
        return extremes(values) if values else None

    def text(self, spread: Spread | None) -> str:
        """Write a figure: the median, and the extremes of several runs."""
        if spread is None:
            return self.absent
        if spread.low == spread.high:
            return self._number(spread.median)
        return f"{self._number(spread.median)} ({self._number(spread.low)} to {self._number(spread.high)})"

    def difference(self, spread: Spread | None, base: Spread | None) -> str:
        """Write how a figure differs from the baseline's; empty where either is unknown or the baseline's is zero."""
        if spread is None or base is None or not base.median:
            return ""
        ratio = spread.median / base.median
        share = f"{100 * (ratio - 1):+.1f} %"
        match self.style:
            case "factor" if ratio:
                return f"{_significant(ratio, 3)}x"
            case "faster" if ratio:
                faster = ratio < 1
                return f"{_significant(1 / ratio if faster else ratio, 3)}x {'faster' if faster else 'slower'}"
            case "points":
                points = f"{spread.median - base.median:+.2f} pp"
                return f"{points} ({100 * (ratio - 1):+.2f} % relative)"
            case "near" if abs(ratio - 1) < _EQUAL:
                return f"≈ equal ({share})"
        return share

    def _number(self, value: float) -> str:
        return _significant(value, _SIGNIFICANT) if self.format == "4" else format(value, self.format)


def table_rows(groups: Sequence[Group]) -> list[Row]:
    """Return the rows of a table: the benchmark, the scores that any run has, and every figure that any run knows."""
    records = [run.record for group in groups for run in group.runs]
    names = dict.fromkeys(name for record in records for name in record.scores)
    missing = [score for score in BENCHMARK if not any(name.startswith(score) for name in names)]
    known = [row for row in ROWS if any(row.pick(record) is not None for record in records)]
    return [*map(_score, (*names, *missing)), *known]


def _score(name: str) -> Row:
    """Return the row of a score: percent, or a count where the name has a colon."""
    count = ":" in name
    label, form = (name, ",.4g") if count else (f"{name}, %", ".2f")
    style: Style = "share" if count else "points"
    return Row(label, lambda record: record.scores.get(name), form, style, "not measured")


def _per_request(record: Record) -> float | None:
    work = record.run.work
    return work.output_tokens / work.requests if work and work.requests else None


def _highest_temperature(record: Record) -> float | None:
    return max((each.temperature_highest_c or 0.0 for each in record.conditions), default=0.0) or None


def _size_gb(record: Record) -> float | None:
    checkpoint = record.identity.checkpoint
    return checkpoint.bytes_on_disk / _GB if checkpoint and checkpoint.bytes_on_disk else None


ROWS: Final = (
    Row("Energy of the run, J", "run.energy.joules", ",.0f", "share"),
    Row("Energy above idle, J", "run.energy.above_idle_j", ",.0f", "share"),
    Row("J per output token", "run.efficiency.j_per_output_token", "4", "share"),
    Row("J per token, prompt and output", "run.efficiency.j_per_total_token", "4", "share"),
    Row("J per request", "run.efficiency.j_per_request", "4", "share"),
    Row("J per output token, above idle", "run.efficiency_above_idle.j_per_output_token", "4", "share"),
    Row("Output tokens per Wh", "run.efficiency.output_tokens_per_wh", "4", "factor"),
    Row("Requests per Wh", "run.efficiency.requests_per_wh", "4", "factor"),
    Row("Output tokens per Wh, steady", "steady.efficiency.output_tokens_per_wh", "4", "factor"),
    Row("Wall-clock of the run, s", "run.duration_s", ",.0f", "faster"),
    Row("Output tokens per s", "run.output_tokens_per_s", "4", "factor"),
    Row("Output tokens per s, steady", "steady.output_tokens_per_s", "4", "factor"),
    Row("Requests per s", "run.requests_per_s", "4", "factor"),
    Row("Requests", "run.work.requests", ",.0f", "near"),
    Row("Output tokens per request", _per_request, "4", "share"),
    Row("First token, 95th percentile, s", "engine.latency.time_to_first_token.p95_s", "4", "share"),
    Row("Request, 95th percentile, s", "engine.latency.request.p95_s", "4", "share"),
    Row("Preemptions", "engine.preemptions", ",.0f", "share"),
    Row("Average GPU power, W", "run.energy.mean_power_w", ".1f", "near"),
    Row("Idle GPU power, W", "idle.energy.mean_power_w", ".1f", "near"),
    Row("Highest GPU temperature, °C", _highest_temperature, ".0f", "near"),
    Row("Checkpoint on disk, GB", _size_gb, ".2f", "share"),
)


def _at(record: Record, source: str) -> float | None:
    """Return the value at dotted names; None where one of them on the way is null or absent."""
    value: Any = record
    for name in source.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return None if value is None else float(value)


def _significant(value: float, digits: int) -> str:
    """Write a number with so many significant digits, the whole part in full."""
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    return f"{rounded:,.{decimals}f}"
