"""What can happen to an endpoint: threads and signal handlers post it, the supervisor's loop alone acts on it."""

from dataclasses import dataclass

from servekit.serve.download import Download
from servekit.serve.status import Phase
from servekit.serve.watch.probe import Settled
from servekit.serve.watch.watcher import Observation


@dataclass(frozen=True)
class StopRequested:
    """A user or the platform wants the endpoint to stop."""

    by: str


@dataclass(frozen=True)
class Exited:
    """The engine has ended, and nothing of it is left."""

    code: int


class ThreadEndedError(Exception):
    """A thread of servekit has ended with an exception: what it did is no longer done."""


Event = StopRequested | Exited | ThreadEndedError | Phase | Download | Settled | Observation
"""A `Phase` reports that this phase of the start has begun, a `Download` how far it is."""
