"""The current status of the endpoint: one writer changes it, all others read a frozen snapshot."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from servekit.serve.download import Download
from servekit.serve.watch.running_contract import ContractItem

_KEPT_TRANSITIONS = 200
"""The history must not fill the memory when a server is silent many times."""


class State(StrEnum):
    """The life of one endpoint, in order; `failed` may follow any of the first four."""

    STARTING = "starting"
    READY = "ready"
    SILENT = "silent"
    """Was ready, and its server does not answer; ready again as soon as it does."""
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Phase(StrEnum):
    """The parts of a start, in order; an engine may skip some."""

    PREFLIGHT = "preflight"
    DOWNLOAD = "download"
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
class Status:
    """A snapshot of the endpoint."""

    state: State = State.STARTING
    reason: str = "not started yet"
    transitions: tuple[Transition, ...] = ()
    starts: tuple[tuple[Phase, float], ...] = ()
    """Each phase that has begun, with the monotonic second of its beginning."""
    over_s: float | None = None
    """The monotonic second at which the start was over: the endpoint became ready, or the start ended before."""
    was_ready: bool = False
    engine_pid: int | None = None
    contract: tuple[ContractItem, ...] = ()
    """The plan and the running engine, item by item; empty until the engine has reported."""
    commit: str = ""
    """The commit of the hub model that is served; empty until it is known, and for a folder."""
    download: Download | None = None
    """The last moment of the download, if there was one."""
    exit_code: int | None = None

    @property
    def phase(self) -> Phase | None:
        """The current phase of the start; None once the start is over."""
        return self.starts[-1][0] if self.starts and self.over_s is None else None

    @property
    def detail(self) -> str:
        """The reason, with how far a running download is."""
        downloads = self.download and self.phase is Phase.DOWNLOAD
        return f"{self.reason}: {self.download}" if downloads else self.reason

    def timeline(self, now: float) -> dict[Phase, float]:
        """Return every phase that has begun, with its length in seconds at the monotonic second `now`."""
        bounds = [start for _, start in self.starts[1:]] + [now if self.over_s is None else self.over_s]
        return {phase: max(0.0, bound - start) for (phase, start), bound in zip(self.starts, bounds, strict=False)}

    def start_seconds(self, now: float) -> float:
        """Return how long the start took, or has taken so far."""
        return sum(self.timeline(now).values())


class StatusStore:
    """Holds the current status: only the thread of the supervisor's loop writes it, any thread reads it."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        *,
        on_change: Callable[[Status], None] = lambda _: None,
    ) -> None:
        """Call `on_change` after each change of state, phase or download; it must not raise."""
        self._clock = clock
        self._wall = wall
        self._on_change = on_change
        self._status = Status()

    def read(self) -> Status:
        """Return the current snapshot."""
        return self._status

    def enter(self, state: State, reason: str, *, exit_code: int | None = None) -> None:
        """Change the state and record when and why; `exit_code` is the one that the program will end with."""
        status = self._status
        self._status = replace(
            status,
            state=state,
            reason=reason,
            exit_code=exit_code,
            transitions=(*status.transitions, Transition(self._wall(), state, reason))[-_KEPT_TRANSITIONS:],
            over_s=self._clock() if state is not State.STARTING and status.over_s is None else status.over_s,
            was_ready=status.was_ready or state is State.READY,
        )
        self._on_change(self._status)

    def enter_phase(self, phase: Phase) -> bool:
        """Begin a phase of the start; return False, and change nothing, if it or a later one has begun already."""
        status, order = self._status, list(Phase)
        if status.starts and order.index(phase) <= order.index(status.starts[-1][0]):
            return False
        self._status = replace(status, starts=(*status.starts, (phase, self._clock())))
        self._on_change(self._status)
        return True

    def record(
        self, *, engine_pid: int | None = None, contract: tuple[ContractItem, ...] = (), commit: str = ""
    ) -> None:
        """Record what is known about the running engine; a value that is not given stays as it is."""
        old = self._status
        self._status = replace(
            old,
            engine_pid=engine_pid or old.engine_pid,
            contract=contract or old.contract,
            commit=commit or old.commit,
        )

    def record_download(self, download: Download) -> None:
        """Record how far the download is."""
        self._status = replace(self._status, download=download, commit=download.commit)
        self._on_change(self._status)
