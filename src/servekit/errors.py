"""The one family of errors, each with the exit code it ends the program with."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the end of `servekit serve` tells its caller; docs/operations.md has a paragraph for each."""

    STOPPED = 0
    """Asked to stop, and everything running was finished."""
    CONFIGURATION = 2
    """The profile, a flag or an environment variable is wrong."""
    PREFLIGHT = 3
    """The checkpoint, the host or the memory does not carry this profile."""
    START_FAILED = 4
    """The engine did not come up."""
    ENGINE_DIED = 5
    """The engine ended while it served."""
    ENGINE_HUNG = 6
    """The engine ran but made no progress."""
    CONTRACT_BROKEN = 7
    """The running engine does not do what the profile demands."""
    DRAIN_RAN_OUT = 8
    """Asked to stop, but requests were cut when the drain time was over."""
    BUG = 70
    """A fault of servekit's own."""


@dataclass(frozen=True)
class Mistake:
    """One mistake in what the user wrote: where it stands, what is wrong, what was got, what to do."""

    where: str
    """`FILE:LINE`, `FILE`, an environment variable or a flag."""
    message: str
    key: str = ""
    got: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """`where: key: message (got X); what to do`."""
        key = f"{self.key}: " if self.key else ""
        got = f" (got {self.got})" if self.got else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.where}: {key}{self.message}{got}{remedy}"


class ServekitError(Exception):
    """The base of every error servekit raises on purpose: its text is meant for the user."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class ConfigurationError(ServekitError):
    """Everything that is wrong with what the user wrote, at once."""

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = tuple(mistakes)


class StartError(ServekitError):
    """The engine could not be started, or ended before it was ready."""

    exit_code = ExitCode.START_FAILED


class PreflightError(ServekitError):
    """The checkpoint, the host or the memory does not carry this profile."""

    exit_code = ExitCode.PREFLIGHT
