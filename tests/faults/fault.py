"""One fault: how to start into it, how to provoke it, and everything the endpoint must say and do about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.launch import Launch

Check = Callable[[], None]
Prepare = Callable[["Launch"], None]
Provoke = Callable[["Launch"], Check | None]

STARTING, READY, SILENT = "starting", "ready", "silent"
DRAINING, STOPPED, FAILED = "draining", "stopped", "failed"
NEVER_UP: tuple[str, ...] = ()
NOT_STARTED = (STARTING, FAILED)
BROKEN = (STARTING, READY, FAILED)
DRAINED = (STARTING, READY, DRAINING, STOPPED)
STOPPED_EARLY = (STARTING, DRAINING, STOPPED)


def by_itself(_: "Launch") -> None:
    """Wait for nothing: the fault comes without anybody's doing."""


def as_it_is(_: "Launch") -> None:
    """Change nothing about the start."""


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    name: str
    states: tuple[str, ...]
    """The states in order; what both probes must answer follows from them."""
    exit_code: int
    """As subprocess has it: negative for a signal."""
    message: str
    """Part of a line of the log, or of the message on standard error."""
    engine: str = "fake"
    """fake; real: vLLM 0.20.2 on the CPU; none: it never comes to that."""
    faults: tuple[str, ...] = ()
    """Flags of the fake engine."""
    flags: tuple[str, ...] = ()
    """Flags of `servekit serve`."""
    environ: Mapping[str, str] = field(default_factory=dict)
    prepare: Prepare = as_it_is
    """Called before the start: may change flags and environment, and occupy what the fault needs."""
    provoke: Provoke = by_itself
    """Called after the start; may return a check for after the end."""
    within_s: float = 30
    """How long after the provocation the process may take to end."""


def readiness_in(state: str) -> int:
    """Return what /readyz answers in a state."""
    return 200 if state == READY else 503


def liveness_in(state: str) -> int:
    """Return what /livez answers in a state."""
    return 503 if state == FAILED else 200
