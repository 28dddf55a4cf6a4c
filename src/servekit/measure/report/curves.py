"""What a raw trace shows over time, drawn by pygal: power, tokens per second, KV cache and queue of runs."""

import importlib
import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from servekit.errors import ConfigurationError, Finding
from servekit.measure.figures.counters import follow
from servekit.measure.figures.gpu_trace import gpu_traces
from servekit.measure.figures.windows import find_moments
from servekit.measure.figures.work import GAUGES, TOKENS
from servekit.measure.trace import Trace

_POINTS: Final = 300
"""Of a curve at most; each is the mean of its share of the run, or the highest value of a gauge."""
_GAP_S: Final = 5.0
"""A curve is interrupted where the trace has no value for longer than this."""
_INK: Final = {"foreground": "var(--ink)", "foreground_strong": "var(--ink)", "foreground_subtle": "var(--line)"}
_CHART: Final = {
    "width": 360,
    "height": 180,
    "margin": 4,
    "show_dots": False,
    "show_legend": False,
    "allow_interruptions": True,
    "include_x_axis": True,
    "min_scale": 2,
    "max_scale": 4,
    "x_labels_major_count": 4,
    "show_minor_x_labels": False,
    "truncate_label": -1,
    "stroke_style": {"width": 1.3},
    "js": (),
    "no_prefix": True,
    "disable_xml_declaration": True,
}

Points = list[tuple[float, float | None]]
"""Seconds since the command began, and the value; None where the curve is interrupted."""


def curves_of(trace: Trace) -> dict[str, Points]:
    """Return the curves of a run by their title; empty ones for what the trace does not have."""
    moments = find_moments(trace)
    start_s, end_s = moments.run, moments.after
    width_s = max(trace.one("begin")["scrape_s"], (end_s - start_s) / _POINTS)

    def points(values: Iterable[tuple[float, float]], pick: Callable[[Sequence[float]], float]) -> Points:
        bins: defaultdict[int, list[float]] = defaultdict(list)
        for t, value in values:
            if start_s <= t <= end_s:
                bins[int((t - start_s) / width_s)].append(value)
        return list(_interrupted([((number + 0.5) * width_s, pick(bins[number])) for number in sorted(bins)], width_s))

    pages = list(follow(trace, (TOKENS, *GAUGES.values())))
    cache, queue = (
        [(t, value) for t, page in pages if (value := page[GAUGES[name]]) is not None]
        for name in ("kv_cache_usage", "waiting")
    )
    return {
        "Power, W": points(_power(trace), statistics.fmean),
        "Output tokens per s": points(_rates([(t, page[TOKENS]) for t, page in pages]), statistics.fmean),
        "KV cache in use, %": [(t, value and 100 * value) for t, value in points(cache, max)],
        "Requests that wait": points(queue, max),
    }


def draw(title: str, curves: Sequence[Points]) -> str:
    """Return a chart as SVG for a page that defines the colours --ink, --line, --curve-0 and so on.

    Raises ConfigurationError without pygal.
    """
    pygal = _pygal()
    colours = [f"var(--curve-{number})" for number in range(len(curves))]
    fonts = {"font_family": "inherit", "label_font_size": 11, "major_label_font_size": 11, "no_data_font_size": 13}
    clear = {"background": "transparent", "plot_background": "transparent", "transition": "none"}
    style = pygal.style.Style(colors=colours, **_INK, **fonts, **clear)
    chart = pygal.XY(style=style, x_value_formatter=lambda t: f"{t:,.0f} s", no_data_text="no values", **_CHART)
    for points in curves:
        chart.add(title, points)
    svg = str(chart.render(is_unicode=True))
    svg = re.sub(r"<script.*?</script>", "", svg, flags=re.DOTALL)  # pygal's settings for its tooltips
    return re.sub(r"(\.\d)\d+", r"\1", svg)  # a tenth of a pixel is enough


def _power(trace: Trace) -> Iterator[tuple[float, float]]:
    """Yield the power of all GPUs together; their readings are taken one after the other."""
    gpus = gpu_traces(trace, [gpu["uuid"] for gpu in trace.one("identity")["identity"].get("gpus", ())])
    for samples in zip(*(gpu.samples for gpu in gpus), strict=False):
        watts = [each.watts for each in samples if each.watts is not None]
        if len(watts) == len(samples):
            yield samples[0].t, sum(watts)


def _rates(counts: Sequence[tuple[float, float | None]]) -> Iterator[tuple[float, float]]:
    """Yield how fast a counter grew between two scrapes; nothing where it restarted."""
    for (before_s, before), (t, now) in itertools.pairwise(counts):
        if before is not None and now is not None and now >= before:
            yield (before_s + t) / 2, (now - before) / (t - before_s)


def _interrupted(points: Sequence[tuple[float, float]], width_s: float) -> Iterator[tuple[float, float | None]]:
    for before, point in itertools.pairwise([points[0], *points] if points else ()):
        if point[0] - before[0] > max(_GAP_S, 2 * width_s):
            yield (before[0] + point[0]) / 2, None
        yield point


def _pygal() -> Any:
    try:
        importlib.import_module("pygal.style")
        return importlib.import_module("pygal")
    except ImportError as error:
        remedy = "in a checkout of servekit: pip install '.[html]'"
        raise ConfigurationError([Finding("pygal is not installed", "--format html", remedy=remedy)]) from error
