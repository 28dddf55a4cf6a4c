"""The report as one HTML file: it needs no network and runs no script."""

from dataclasses import dataclass
from importlib import resources
from typing import Final

import jinja2

from servekit.measure.report.curves import Points, curves_of, draw
from servekit.measure.report.runs import Run
from servekit.measure.report.tables import Report, notes_of, table_cells
from servekit.measure.trace import read_trace

_MOST_COLUMNS: Final = 6
"""A wider table has a block for each row on every screen, as every table has on a phone."""


@dataclass(frozen=True)
class _Plots:
    """One run beside a run of the baseline: the names of the curves, and the charts by title."""

    name: str
    curves: list[str]
    charts: dict[str, str]


def report_html(report: Report) -> str:
    """Write the report as a page; raises ConfigurationError without pygal."""
    source = resources.files(__package__)
    page, style = ((source / f"web_report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css"))
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(page)
    head, *rows = table_cells(report)
    return template.render(
        title=" and ".join(group.name for group in report.groups),
        style=style,
        head=head,
        rows=rows,
        wide=len(head) > _MOST_COLUMNS,
        notes=notes_of(report),
        plots=_plots(report),
    )


def _plots(report: Report) -> list[_Plots]:
    """Draw each run beside the baseline's run of the same number, or its last one."""
    found = []
    for group in report.groups:
        base = report.baseline_of(group)
        for number, run in enumerate(group.runs):
            beside = [base.runs[min(number, len(base.runs) - 1)]] if base else []
            known = {each.path: curves for each in (run, *beside) if (curves := _curves(each))}
            names = [path.name.removesuffix(".json") for path in known]
            titles = next(iter(known.values()), {})
            charts = {title: draw(title, [curves[title] for curves in known.values()]) for title in titles}
            found.append(_Plots(run.path.name.removesuffix(".json"), names, charts))
    return found


def _curves(run: Run) -> dict[str, Points]:
    """Return the curves of a run; none where its trace is not beside it."""
    path = run.path.with_name(run.record.trace.file)
    return curves_of(read_trace(path)) if path.exists() else {}
