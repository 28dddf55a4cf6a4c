"""The report as text, Markdown or JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from servekit.measure.report.rows import Row, table_rows
from servekit.measure.report.runs import Group

_GAP = "  "


@dataclass(frozen=True)
class Report:
    """Groups of runs beside each other; the baseline, if there is one, is the first."""

    groups: tuple[Group, ...]
    baseline: Group | None = None

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """Every group, the baseline first."""
        return (*((self.baseline,) if self.baseline else ()), *self.groups)


def report_text(report: Report) -> str:
    """Write the report for a terminal."""
    rows = _cells(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        _GAP.join(cell + " " * (width - len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))
    return "\n".join(
        [lines[0], rule, *lines[1:], *(f"\n{title}\n{_indented(notes)}" for title, notes in _notes(report))]
    )


def report_markdown(report: Report) -> str:
    """Write the report as Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in _cells(report)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    table.insert(1, f"| --- |{' ---: |' * (len(rows[0]) - 1)}")
    notes = [f"\n{title}\n\n" + "\n".join(f"- {note}" for note in found) for title, found in _notes(report)]
    return "\n".join([*table, *notes])


def report_json(report: Report) -> str:
    """Write the report as JSON: for each figure the values, and the share and factor of the baseline's median."""
    rows = [_row_as_dict(report, row) for row in table_rows(report.all_groups)]
    groups = [
        {
            "name": group.name,
            "baseline": group is report.baseline,
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
        for group in report.all_groups
    ]
    return json.dumps({"groups": groups, "rows": rows}, indent=2, ensure_ascii=False)


def _row_as_dict(report: Report, row: Row) -> dict[str, Any]:
    base = row.spread(report.baseline) if report.baseline else None
    cells = []
    for group in report.all_groups:
        spread = row.spread(group)
        cell: dict[str, Any] = {"group": group.name, "runs": [row.pick(run.record) for run in group.runs]}
        cell |= asdict(spread) if spread else {"median": None, "low": None, "high": None}
        if base and spread and base.median and group is not report.baseline:
            cell |= {"factor": spread.median / base.median, "difference": spread.median - base.median}
        cells.append(cell)
    return {"figure": row.label, "values": cells}


def _cells(report: Report) -> list[list[str]]:
    """Return the table as text, its head first; each group beside the baseline has a column of differences."""
    head = ["", *([f"{report.baseline.name} (baseline)"] if report.baseline else [])]
    for group in report.groups:
        head += [group.name, *(["Δ"] if report.baseline else [])]
    rows = [head]
    for row in table_rows(report.all_groups):
        base = row.spread(report.baseline) if report.baseline else None
        cells = [row.label, *([row.text(base)] if report.baseline else [])]
        for group in report.groups:
            spread = row.spread(group)
            cells += [row.text(spread), *([row.difference(spread, base)] if report.baseline else [])]
        rows.append(cells)
    return rows


def _notes(report: Report) -> list[tuple[str, list[str]]]:
    """Return what the reader must know beside the table: titles, each with its lines."""
    found = [
        ("Configurations", [_configuration(group) for group in report.all_groups]),
        (
            "Differences within a name",
            [f"{g.name}: {', '.join(g.differences)}" for g in report.all_groups if g.differences],
        ),
        ("Rules that a run breaks", _of_runs(report, "broken_rules")),
        ("Disturbances", _of_runs(report, "disturbances")),
    ]
    return [(title, lines) for title, lines in found if lines]


def _of_runs(report: Report, what: str) -> list[str]:
    return [
        f"{run.path.name}: {each}" for group in report.all_groups for run in group.runs for each in getattr(run, what)
    ]


def _configuration(group: Group) -> str:
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
    return f"{group.name}: {'; '.join(parts)}"


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
