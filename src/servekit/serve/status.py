"""What is true now: one writer changes it, everybody else reads a frozen snapshot."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from servekit.serve.watch.running_contract import ContractItem

_KEPT_TRANSITIONS = 200
"""A server that is silent again and again must not fill the memory with its history."""


class State(StrEnum):
    """The life of one endpoint, in order; `failed` may follow any of the first four."""

    STARTING = "starting"
    READY = "ready"
    SILENT = "silent"
    """Was ready, and its server answers nothing; ready again as soon as it answers."""
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Phase(StrEnum):
    """The parts of a start, in the order in which they are seen; an engine may skip some."""

    PREFLIGHT = "preflight"
    IMPORTS = "imports"
    ENGINE = "engine"
    WEIGHTS = "weights"
    COMPILE = "compile"
    WARM_UP = "warm-up"
    VERIFY = "verify"


@dataclass(frozen=True)
class Transition:
    """One change of state: when (seconds since the epoch), to what, why."""

    time_s: float
    state: State
    reason: str


@dataclass(frozen=True)
class Span:
    """How long one phase of the start took; `seconds` counts on while `running`."""

    phase: Phase
    seconds: float
    running: bool


@dataclass(frozen=True)
class Status:
    """A snapshot of the endpoint."""

    state: State = State.STARTING
    reason: str = "not started yet"
    transitions: tuple[Transition, ...] = ()
    starts: tuple[tuple[Phase, float], ...] = ()
    """Each phase seen so far with the monotonic second it began at."""
    ready_at: float | None = None
    """The monotonic second at which the endpoint became ready."""
    ended_at: float | None = None
    """The monotonic second at which the start was over without becoming ready."""
    engine_pid: int | None = None
    contract: tuple[ContractItem, ...] = ()
    """What the running engine does of what was planned; empty until it was asked."""
    exit_code: int | None = None

    @property
    def alive(self) -> bool:
        """Whether a restart would not help: true until servekit is about to end with a failure."""
        return self.state is not State.FAILED

    @property
    def phase(self) -> Phase | None:
        """The phase of the start that runs now; nothing once the start is over."""
        over = self.ready_at is not None or self.ended_at is not None or self.state is not State.STARTING
        return None if over or not self.starts else self.starts[-1][0]

    def timeline(self, now: float) -> tuple[Span, ...]:
        """Return every phase seen with its length in seconds at the monotonic second `now`."""
        end = self.ready_at if self.ready_at is not None else self.ended_at
        bounds = [start for _, start in self.starts[1:]] + [now if end is None else end]
        return tuple(
            Span(phase, max(0.0, bound - start), running=phase is self.phase)
            for (phase, start), bound in zip(self.starts, bounds, strict=False)
        )

    def start_seconds(self, now: float) -> float:
        """Return how long the start has taken, or took."""
        return sum(span.seconds for span in self.timeline(now))


class StatusStore:
    """Holds the current status: the supervisor writes it, probes and exporters read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._status = Status()

    def read(self) -> Status:
        """Return the snapshot of this moment."""
        return self._status

    def enter(self, state: State, reason: str, *, exit_code: int | None = None) -> Status:
        """Change the state, remembering when and why; `exit_code` is the one the program will end with."""
        with self._lock:
            status = self._status
            now = self._clock()
            over = status.ready_at is not None or status.ended_at is not None
            self._status = replace(
                status,
                state=state,
                reason=reason,
                exit_code=exit_code,
                transitions=(*status.transitions, Transition(self._wall(), state, reason))[-_KEPT_TRANSITIONS:],
                ready_at=now if state is State.READY and status.ready_at is None else status.ready_at,
                ended_at=now if state not in {State.STARTING, State.READY} and not over else status.ended_at,
            )
            return self._status

    def see_phase(self, phase: Phase) -> bool:
        """Begin a phase of the start; a phase seen before, or one that lies behind, changes nothing."""
        order = list(Phase)
        with self._lock:
            status = self._status
            if status.starts and order.index(phase) <= order.index(status.starts[-1][0]):
                return False
            self._status = replace(status, starts=(*status.starts, (phase, self._clock())))
            return True

    def note(self, *, engine_pid: int | None = None, contract: tuple[ContractItem, ...] | None = None) -> None:
        """Add what was learnt about the running engine."""
        with self._lock:
            if engine_pid is not None:
                self._status = replace(self._status, engine_pid=engine_pid)
            if contract is not None:
                self._status = replace(self._status, contract=contract)
