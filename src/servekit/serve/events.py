"""What can happen to an endpoint: posted by threads and signal handlers, acted upon by the supervisor's loop alone."""

from dataclasses import dataclass

from servekit.serve.status import Phase
from servekit.serve.watch.probe import Settled
from servekit.serve.watch.watcher import Observation


@dataclass(frozen=True)
class StopAsked:
    """Somebody wants the endpoint to stop."""

    by: str


@dataclass(frozen=True)
class Exited:
    """The engine has ended, and nothing of it is left."""

    code: int


@dataclass(frozen=True)
class Entered:
    """A line of the engine announced a phase of the start."""

    phase: Phase


Event = StopAsked | Exited | Entered | Settled | Observation
