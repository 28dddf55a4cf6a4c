"""Findings: what preflight has to say, each under a stable name, with what to do about it."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from servekit.preflight.catalogue import CATALOGUE


class Severity(StrEnum):
    """How much a finding weighs: errors stop the start, warnings and notes are told."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


@dataclass(frozen=True)
class Finding:
    """One result of preflight.

    `name` is a key of `catalogue.CATALOGUE`, which is also what `--skip` takes; `subject` is the file, the GPU
    or the address it is about.
    """

    name: str
    severity: Severity
    message: str
    remedy: str = ""
    subject: str = ""

    def __post_init__(self) -> None:
        if self.name not in CATALOGUE:
            raise ValueError(f"finding {self.name!r} stands in no catalogue")

    def __str__(self) -> str:
        """`severity name: subject: message; remedy`."""
        subject = f"{self.subject}: " if self.subject else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.severity} {self.name}: {subject}{self.message}{remedy}"

    def as_dict(self) -> dict[str, str]:
        """Give the finding as plain strings, for JSON."""
        return {
            "name": self.name,
            "severity": str(self.severity),
            "subject": self.subject,
            "message": self.message,
            "remedy": self.remedy,
        }


def error(name: str, message: str, *, remedy: str = "", subject: str = "") -> Finding:
    """Make a finding that stops the start."""
    return Finding(name, Severity.ERROR, message, remedy, subject)


def warning(name: str, message: str, *, remedy: str = "", subject: str = "") -> Finding:
    """Make a finding that does not stop the start but should be looked at."""
    return Finding(name, Severity.WARNING, message, remedy, subject)


def note(name: str, message: str, *, remedy: str = "", subject: str = "") -> Finding:
    """Make a finding that is good to know."""
    return Finding(name, Severity.NOTE, message, remedy, subject)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether one of them stops the start."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; within one severity as they were found."""
    return tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity]))


def without(findings: Iterable[Finding], skip: Collection[str]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Split into those that count and those the user asked to skip by name.

    The caller logs the second part: a skipped finding is never silent.
    """
    every = tuple(findings)
    return (
        tuple(finding for finding in every if finding.name not in skip),
        tuple(finding for finding in every if finding.name in skip),
    )


def unknown_names(skip: Iterable[str]) -> tuple[str, ...]:
    """Names given to `--skip` that no finding has, in the order given."""
    return tuple(name for name in skip if name not in CATALOGUE)


def render(findings: Sequence[Finding]) -> str:
    """Write findings for a person: one line each and its remedy below, errors first."""
    lines: list[str] = []
    for finding in in_order(findings):
        subject = f"{finding.subject}: " if finding.subject else ""
        lines.append(f"{finding.severity:<8}{finding.name}: {subject}{finding.message}")
        if finding.remedy:
            lines.append(f"{'':<8}-> {finding.remedy}")
    return "\n".join(lines)
