"""What servekit reports to its user: findings, in one form, and the errors that carry them, each with an exit code."""

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import KW_ONLY, asdict, dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, TextIO


class ExitCode(IntEnum):
    """Why `servekit serve` ended; docs/operations.md has a paragraph for each."""

    STOPPED = 0
    """A stop was requested, and every running request finished."""
    CONFIGURATION = 2
    """The profile, a flag or an environment variable is wrong."""
    PREFLIGHT = 3
    """The checkpoint, the host or the memory does not fit this profile."""
    START_FAILED = 4
    """The engine did not start."""
    ENGINE_DIED = 5
    """The engine ended while it served."""
    ENGINE_HUNG = 6
    """The engine ran but made no progress."""
    CONTRACT_BROKEN = 7
    """The running engine does not do what the profile demands."""
    DRAIN_RAN_OUT = 8
    """A stop was requested, but the drain time ended before all requests did."""
    BUG = 70
    """A bug in servekit."""


class Severity(StrEnum):
    """How much a finding weighs: an error stops the start."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


_ORDER: Final = tuple(Severity)
_COLOURS: Final = {Severity.ERROR: "1;31", Severity.WARNING: "1;33", Severity.NOTE: "1;36"}


@dataclass(frozen=True)
class Finding:
    """One problem or note about the user's files, settings or host: where it is, and what to do."""

    message: str
    subject: str = ""
    """What it is about, if not a file: a flag, an environment variable, a GPU, an address."""
    _: KW_ONLY
    got: str = ""
    remedy: str = ""
    file: str = ""
    line: int = 0
    """The line in `file`, from 1; 0 if the finding has no single line, such as a missing key."""
    key: str = ""
    """The dotted key in `file`; without a file, a key of the profile."""
    severity: Severity = Severity.ERROR
    name: str = ""
    """What `--skip` takes; empty where the finding cannot be skipped."""

    def __str__(self) -> str:
        """`file:line: severity: key: subject: message (got X); remedy  [name]`, without the parts that are empty."""
        return render((self,))

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON; the subject of a file's finding is the file's name."""
        return asdict(self) | {"subject": self.subject or Path(self.file).name}


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return errors first, then warnings, then notes; each by file and line, findings without a file last."""
    found = tuple(findings)
    files = [*dict.fromkeys(each.file for each in found if each.file), ""]
    return tuple(
        sorted(found, key=lambda each: (_ORDER.index(each.severity), files.index(each.file), each.line or math.inf))
    )


def render(findings: Iterable[Finding], stream: TextIO | None = None) -> str:
    """Return findings as text, one line each.

    A `stream` that is a terminal gets colour (unless NO_COLOR is set), a blank line between severities, each remedy on
    a line of its own, and the totals.
    """
    terminal = stream is not None and stream.isatty()
    colour = terminal and not os.environ.get("NO_COLOR")
    lines: list[str] = []
    totals: Counter[Severity] = Counter()
    for each in findings:
        place = f"{each.file}:{each.line}" if each.line else each.file
        severity = f"\x1b[{_COLOURS[each.severity]}m{each.severity}\x1b[0m" if colour else each.severity
        text = ": ".join(filter(None, (place, severity, each.key, each.subject, each.message)))
        text += f" (got {each.got})" if each.got else ""
        name = f"  [{each.name}]" if each.name else ""
        if not terminal:
            lines.append(f"{text}{f'; {each.remedy}' if each.remedy else ''}{name}")
            continue
        lines += [""] * (bool(totals) and each.severity not in totals)
        lines += [f"{text}{name}", *([f"    {each.remedy}"] if each.remedy else [])]
        totals[each.severity] += 1
    if totals:
        lines += ["", ", ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in totals.items())]
    return "\n".join(lines)


class ServekitError(Exception):
    """The base of every error that servekit raises on purpose; carries all of its findings, in order."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = in_order(findings)
        super().__init__(render(self.findings))


class ConfigurationError(ServekitError):
    """The profile, a flag or an environment variable is wrong."""

    exit_code = ExitCode.CONFIGURATION


class PreflightError(ServekitError):
    """The checkpoint, the host or the memory does not fit this profile."""

    exit_code = ExitCode.PREFLIGHT
