"""The findings of preflight, each with a name from the catalogue, and the line that it is about."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from servekit.errors import Finding, Severity, in_order
from servekit.preflight.catalogue import CATALOGUE
from servekit.profile import nearest

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, where PyYAML has it, is ten times as fast."""

__all__ = ["Finding", "Severity", "error", "has_errors", "in_order", "line_of", "located", "note", "warning"]


def _named(severity: Severity, name: str, message: str, *, subject: str = "", **details: Any) -> Finding:
    if name not in CATALOGUE:
        raise ValueError(f"{name!r} is not a finding of the catalogue")
    return Finding(message, subject, severity=severity, name=name, **details)


error = partial(_named, Severity.ERROR)
"""Make a finding that stops the start."""
warning = partial(_named, Severity.WARNING)
"""Make a finding that does not stop the start but needs attention."""
note = partial(_named, Severity.NOTE)
"""Make a finding that is good to know."""


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether one of them stops the start."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def unknown_skips(skip: Iterable[str]) -> list[Finding]:
    """Return a mistake for every name of `skip` that no finding has."""
    guesses = {name: nearest(name, CATALOGUE) for name in skip if name not in CATALOGUE}
    other = "give the name in brackets at the end of a finding"
    return [
        Finding("is not the name of a finding", "--skip", got=name, remedy=f"did you mean {guess}?" if guess else other)
        for name, guess in guesses.items()
    ]


def located(finding: Finding, path: Path) -> Finding:
    """Return the finding with the file that it is about, and the line of its key there."""
    return replace(finding, file=str(path), line=finding.line or line_of(path, finding.key))


def line_of(path: Path, key: str) -> int:
    """Return the line of the dotted `key` in a JSON or YAML file, or of the innermost part of it that is there.

    0 where there is none, or the file cannot be read. Dashes and underscores count as equal, as they do for vLLM.
    """
    line = 0
    if not key:
        return line
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), _LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return line
    for part in key.replace("_", "-").split("."):
        entries = node.value if isinstance(node, yaml.MappingNode) else ()
        found = [entry for entry in entries if str(entry[0].value).replace("_", "-") == part]
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line
