"""One fault: how to start with it, how to provoke it, and everything the endpoint must report and do about it."""

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
    """Provoke nothing: the fault occurs by itself."""


def as_it_is(_: "Launch") -> None:
    """Change nothing about the start."""


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    name: str
    states: tuple[str, ...]
    """The states in order; they determine what both probes must answer."""
    exit_code: int
    """As in subprocess: negative for a signal."""
    message: str
    """Part of a log line, or of the message on standard error."""
    engine: str = "fake"
    """fake; real: vLLM 0.20.2 on the CPU; none: no engine is started."""
    faults: tuple[str, ...] = ()
    """Flags of the fake engine."""
    flags: tuple[str, ...] = ()
    """Flags of `servekit serve`."""
    environ: Mapping[str, str] = field(default_factory=dict)
    prepare: Prepare = as_it_is
    """Called before the start: may change flags and environment, or occupy a port."""
    provoke: Provoke = by_itself
    """Called after the start; may return a check to run after the end."""
    within_s: float = 120
    """How long the process may take to end after the provocation."""


def readiness_in(state: str) -> int:
    """Return the status of /readyz in a state."""
    return 200 if state == READY else 503


def liveness_in(state: str) -> int:
    """Return the status of /livez in a state."""
    return 503 if state == FAILED else 200
