"""The expressions of the shipped dashboard and rules, in the form in which Prometheus evaluates them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

VARIABLES: Mapping[str, str] = {"$__rate_interval": "1m", "$__range": "10m", "$__interval": "15s", "$instance": ".+"}
"""The values of Grafana's variables; `$instance` is the choice "All"."""

NVML_ROW = "GPU (needs NVML)"
NVML_GROUP = "servekit-energy"
"""The dashboard's row and the group of recording rules that are empty without NVML."""

OF_PROMETHEUS = frozenset({"up", "ALERTS"})
"""Series that Prometheus itself generates."""

_LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_LITERALS = re.compile(r'"(?:\\.|[^"\\])*"')
_SELECTORS = re.compile(r"\{[^}]*\}|\[[^\]]*\]")
_NAMES = re.compile(r"(?<![\w:.])[A-Za-z_:][\w:]*(?!\s*\(|[\w:])")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring"})


@dataclass(frozen=True)
class Expression:
    """One PromQL expression, and where it is used."""

    where: str
    """ROW / PANEL of a dashboard, or the name of a rule's result."""
    text: str
    needs_nvml: bool
    """Whether it is empty without a GPU."""
    by_default: bool = True
    """False if it is also empty on a healthy endpoint: the condition of an alert."""


def expressions(path: Path, variables: Mapping[str, str] = VARIABLES) -> list[Expression]:
    """Return every expression of the dashboard at `path`, with Grafana's variables replaced."""
    found = []
    for row, panel in panels(json.loads(path.read_text())):
        for target in panel["targets"]:
            where = f"{row} / {panel['title']}"
            found.append(Expression(where, _replaced(target["expr"], variables), needs_nvml=row == NVML_ROW))
    return found


def panels(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each panel with the title of its row."""
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            yield row, panel


def rules(folder: Path) -> list[Expression]:
    """Return the expression of every recording rule and alert in a folder of rule files."""
    found = []
    for path in sorted(folder.glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                name = rule.get("record") or rule["alert"]
                needs_nvml = group["name"] == NVML_GROUP
                found.append(Expression(name, rule["expr"], needs_nvml=needs_nvml, by_default="record" in rule))
    return found


def metric_names(expression: str) -> set[str]:
    """Return the names of the series an expression reads."""
    for noise in (_LITERALS, _SELECTORS, _LABEL_LISTS):
        expression = noise.sub(" ", expression)
    return {name for name in _NAMES.findall(expression) if name.lower() not in _WORDS}


def _replaced(text: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        text = text.replace(name, value)
    assert "$" not in text, f"a variable of Grafana is left in: {text}"
    return text
