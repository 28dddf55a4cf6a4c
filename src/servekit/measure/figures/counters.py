"""The samples of metrics pages: sums over labels, what counters gained, and percentiles of histograms."""

import functools
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from servekit.measure.trace import Page, Trace

_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@functools.cache
def parse_name(sample: str) -> tuple[str, Mapping[str, str]]:
    """Return the name and the labels of a sample such as `vllm:prompt_tokens_total{engine="0"}`."""
    name, _, rest = sample.partition("{")
    return name, dict(_LABEL.findall(rest))


def total(page: Page, name: str, **labels: str) -> float | None:
    """Return the sum of the samples with this name and these labels; None if there is none."""
    values = [float(value) for sample, value in page.items() if _is(sample, name, labels)]
    return sum(values) if values else None


def by_label(page: Page, name: str, label: str) -> dict[str, float]:
    """Return the sums of the samples with this name, for each value of a label."""
    values = {parse_name(sample)[1].get(label, "") for sample in page if _is(sample, name, {})}
    return {value: total(page, name, **{label: value}) or 0.0 for value in sorted(values)}


@dataclass(frozen=True)
class Gains:
    """What the counters of one engine gained between two pages."""

    before: Page
    after: Page

    def of(self, name: str, **labels: str) -> int | None:
        """Return what a counter gained; None if the later page has none."""
        after = total(self.after, name, **labels)
        return None if after is None else round(after - (total(self.before, name, **labels) or 0.0))

    def by(self, name: str, label: str) -> dict[str, int]:
        """Return what a counter gained, for each value of a label."""
        before = by_label(self.before, name, label)
        return {key: round(value - before.get(key, 0.0)) for key, value in by_label(self.after, name, label).items()}

    def histogram(self, name: str) -> "Histogram | None":
        """Return what a histogram gained; None if it gained nothing."""
        before, after = (by_label(page, f"{name}_bucket", "le") for page in (self.before, self.after))
        bounds = sorted((float(bound), count - before.get(bound, 0.0)) for bound, count in after.items())
        if not bounds or not bounds[-1][1]:
            return None
        sums = [total(page, f"{name}_sum") or 0.0 for page in (self.before, self.after)]
        return Histogram(tuple(bounds), sums[1] - sums[0])


@dataclass(frozen=True)
class Histogram:
    """Observations by upper bound, cumulative, and their sum."""

    buckets: tuple[tuple[float, float], ...]
    sum: float

    @property
    def count(self) -> int:
        """The number of observations."""
        return round(self.buckets[-1][1])

    def quantile(self, share: float) -> float | None:
        """Return a quantile as PromQL's histogram_quantile estimates it; None above the highest finite bound."""
        rank = share * self.buckets[-1][1]
        for (low, below), (high, count) in itertools.pairwise([(0.0, 0.0), *self.buckets]):
            if count >= rank and count > below:
                return None if math.isinf(high) else low + (high - low) * (rank - below) / (count - below)
        return None


def _is(sample: str, name: str, labels: Mapping[str, str]) -> bool:
    if not sample.startswith(name):
        return False
    own, own_labels = parse_name(sample)
    return own == name and all(own_labels.get(label) == value for label, value in labels.items())


def follow(trace: Trace, names: Collection[str]) -> Iterator[tuple[float, dict[str, float | None]]]:
    """Yield the moment of each answered scrape and the sum of the samples with each name; None where it has none."""
    values: dict[str, dict[str, float]] = {name: {} for name in names}
    for scrape in trace.scrapes:
        if scrape.changed is None:
            continue
        for sample, value in scrape.changed.items():
            if (name := parse_name(sample)[0]) in values:
                values[name][sample] = float(value)
        for sample in scrape.gone:
            values.get(parse_name(sample)[0], {}).pop(sample, None)
        yield scrape.t, {name: sum(each.values()) if each else None for name, each in values.items()}
