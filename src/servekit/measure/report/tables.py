"""The report as text, Markdown or JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from servekit.errors import ConfigurationError, Finding
from servekit.measure.report.rows import Row, table_rows
from servekit.measure.report.runs import Group

_GAP = "  "


@dataclass(frozen=True)
class Report:
    """Groups of runs beside each other, each with its baseline if there is one."""

    groups: tuple[Group, ...]
    baselines: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigurationError where a group has none of several baselines."""
        if missing := [group.name for group in self.groups if self.baselines and not self.baseline_of(group)]:
            names = ", ".join(base.name for base in self.baselines)
            remedy = "give a baseline of the same name, or records of one name alone"
            finding = Finding(f"none of these is named {', '.join(missing)}", "--baseline", got=names, remedy=remedy)
            raise ConfigurationError([finding])

    def baseline_of(self, group: Group) -> Group | None:
        """Return the baseline of the same name, as records of `bench` have it, or the only one."""
        named = {base.name: base for base in self.baselines}
        return named.get(group.name) or (self.baselines[0] if len(self.baselines) == 1 else None)

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """Every group, the baselines first."""
        return (*self.baselines, *self.groups)


def report_text(report: Report) -> str:
    """Write the report for a terminal."""
    rows = table_cells(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        _GAP.join(cell + " " * (width - len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))
    return "\n".join(
        [lines[0], rule, *lines[1:], *(f"\n{title}\n{_indented(notes)}" for title, notes in notes_of(report))]
    )


def report_markdown(report: Report) -> str:
    """Write the report as Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table_cells(report)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    table.insert(1, f"| --- |{' ---: |' * (len(rows[0]) - 1)}")
    notes = [f"\n{title}\n\n" + "\n".join(f"- {note}" for note in found) for title, found in notes_of(report)]
    return "\n".join([*table, *notes])


def report_json(report: Report) -> str:
    """Write the report as JSON: for each figure the values, and the share and factor of the baseline's median."""
    rows = [_row_as_dict(report, row) for row in table_rows(report.all_groups)]
    groups = [
        {
            "name": group.name,
            "baseline": number < len(report.baselines),
            "differences": list(group.differences),
            "runs": [
                {
                    "file": str(run.path),
                    "broken_rules": list(run.broken_rules),
                    "disturbances": list(run.disturbances),
                    "contract_met": run.record.identity.contract.met,
                }
                for run in group.runs
            ],
        }
        for number, group in enumerate(report.all_groups)
    ]
    return json.dumps({"groups": groups, "rows": rows}, indent=2, ensure_ascii=False)


def _row_as_dict(report: Report, row: Row) -> dict[str, Any]:
    cells = []
    for number, group in enumerate(report.all_groups):
        base = report.baseline_of(group) if number >= len(report.baselines) else None
        spread, other = row.spread(group), row.spread(base) if base else None
        cell: dict[str, Any] = {"group": group.name, "runs": [row.pick(run.record) for run in group.runs]}
        cell |= asdict(spread) if spread else {"median": None, "low": None, "high": None}
        if other and spread and other.median:
            cell |= {"factor": spread.median / other.median, "difference": spread.median - other.median}
        cells.append(cell)
    return {"figure": row.label, "values": cells}


def table_cells(report: Report) -> list[list[str]]:
    """Return the table as text, its head first: each group with a column of differences from the baseline before it."""
    rows = table_rows(report.all_groups)
    columns = [["", *(row.label for row in rows)]]
    shown = None
    for group in report.groups:
        base = report.baseline_of(group)
        if base and base is not shown:
            columns.append([f"{base.name} (baseline)", *(row.text(row.spread(base)) for row in rows)])
            shown = base
        columns.append([group.name, *(row.text(row.spread(group)) for row in rows)])
        if base:
            columns.append(["Δ", *(row.difference(row.spread(group), row.spread(base)) for row in rows)])
    return [list(row) for row in zip(*columns, strict=True)]


def notes_of(report: Report) -> list[tuple[str, list[str]]]:
    """Return what the reader must know beside the table: titles, each with its lines."""
    found = [
        ("Configurations", [_configuration(group, report) for group in report.all_groups]),
        (
            "Differences within a name",
            [f"{g.name}: {', '.join(g.differences)}" for g in report.all_groups if g.differences],
        ),
        ("Rules that a run breaks", _of_runs(report, "broken_rules")),
        ("Disturbances", _of_runs(report, "disturbances")),
    ]
    return [(title, lines) for title, lines in found if lines]


def _of_runs(report: Report, what: str) -> list[str]:
    runs = [run for group in report.all_groups for run in group.runs]
    names = Counter(path.name for path in {run.path for run in runs})
    lines = []
    for run in runs:
        file = run.path.name if names[run.path.name] == 1 else f"{run.path.parent.name}/{run.path.name}"
        lines += [f"{file}: {each}" for each in getattr(run, what)]
    return lines


def _configuration(group: Group, report: Report) -> str:
    record = group.runs[0].record
    identity = record.identity
    gpus = ", ".join(sorted({gpu.name or gpu.uuid for gpu in identity.gpus})) or "no GPU"
    model = identity.checkpoint.model if identity.checkpoint else identity.served_name or "unknown model"
    contract = {True: "contract met", False: "contract not met", None: "no contract"}[identity.contract.met]
    deviations = ", ".join(str(each["key"]) for each in identity.contract.deviations)
    runs = f"{len(group.runs)} run{'s' * (len(group.runs) > 1)}"
    parts = (
        *(runs, model, gpus, f"vLLM {identity.vllm or 'unknown'}"),
        f"{contract}{f', deviates in {deviations}' if deviations else ''}",
    )
    baseline = " (baseline)" * any(group is base for base in report.baselines)
    return f"{group.name}{baseline}: {'; '.join(parts)}"


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
