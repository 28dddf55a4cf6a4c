"""Graceful shutdown: the guard rejects new requests, running ones finish or are cut, and both are counted."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from servekit.errors import ExitCode
from servekit.preflight.host.ports import port_sockets
from servekit.serve.engine.cause import describe_exit
from servekit.serve.plan import Plan
from servekit.serve.watch.probe import EngineClient, Settled
from servekit.thread_pool import ThreadPool

_ANSWER_S = 1.0
"""How long the guard may take to answer, after the settling time. A silent guard must not delay the stop."""

_ESTABLISHED = "01"
"""The state's number in proc(5)'s net/tcp; a connection whose client has hung up has another."""

logger = logging.getLogger(__name__)


def count_connections(port: int, *, proc: Path = Path("/proc/self")) -> int | None:
    """Return the number of clients connected to `port` on this host; None where the kernel does not report it."""
    sockets = port_sockets(port, proc / "net")
    return None if sockets is None else sum(fields[3] == _ESTABLISHED for fields in sockets)


def fewest(*counts: int | None) -> int | None:
    """Return the smallest of the counts that are known; None if none is known."""
    return min((count for count in counts if count is not None), default=None)


def describe_requests(count: int | None) -> str:
    """Return `8 running requests`, and no number where the count is unknown."""
    if count is None:
        return "running requests"
    return f"{count or 'no'} running request{'' if count == 1 else 's'}"


class Drain:
    """One drain: the guard rejects new requests and reports when EngineCore has the others; SIGTERM follows.

    vLLM 0.20.2 closes its port and every idle connection at SIGTERM, so each connection that is left carries a
    request, unless a client holds one open without a request. The number of requests left is therefore the smaller of
    two counts: the connections, and the requests that ran when the drain began.
    """

    def __init__(self, by: str, plan: Plan) -> None:
        self._by = by
        self._plan = plan
        self._began_s = time.monotonic()
        self._began_with: int | None = None
        self._left: int | None = None
        self.settling = True
        """Whether the engine has not yet received its SIGTERM."""

    def settle(self, client: EngineClient, workers: ThreadPool, post: Callable[[Settled], None]) -> None:
        """Ask the guard to drain, on a worker, and post its answer."""
        client.close()  # a connection that the server has just closed would look like a dead guard
        workers.run(lambda: post(client.drain(within_s=self._plan.settle_s + _ANSWER_S)))

    def begin(self, settled: Settled) -> None:
        """Record how many requests run; the engine receives its SIGTERM now."""
        self.settling = False
        self._left = self._began_with = settled.in_flight
        logger.info(
            "%s: draining, %s, at most %d s to finish", self._by, describe_requests(self._left), self._plan.drain_s
        )
        if not settled.arrived and self._plan.settle_s:
            what = "the guard does not answer" if settled.in_flight is None else "the engine does not take requests"
            logger.warning("%s: requests that arrived in the last moment may get an empty answer", what)

    @property
    def deadline_s(self) -> float:
        """The monotonic second at which this step ends: first the wait for the guard, then the whole drain."""
        return self._began_s + (self._plan.settle_s + _ANSWER_S if self.settling else self._plan.stop_s)

    def log_progress(self) -> None:
        """Log the time spent and the requests left."""
        spent_s, left = time.monotonic() - self._began_s, describe_requests(self._left)
        logger.info("draining for %.0f s of at most %d s, %s left", spent_s, self._plan.drain_s, left)

    def count(self) -> None:
        """Count the requests that are left, until vLLM begins to cut them."""
        if not self.settling and self._in_time():
            self._left = fewest(self._began_with, count_connections(self._plan.port))

    def ended(self, code: int, failed: int) -> tuple[ExitCode, str]:
        """Return exit code and reason after the engine has ended with `code`, and EngineCore with `failed` requests."""
        # vLLM also ends with 0 when its EngineCore has died, or was killed because vLLM's own timeout ran out.
        if code == 0 and not failed and (self._in_time() or self._left == 0):
            return ExitCode.STOPPED, f"{self._by}: drained"
        if code:
            why = describe_exit(code)
        elif self._in_time():
            why = f"EngineCore died, and with it {describe_requests(failed)}"
        else:
            why = f"{describe_requests(self._left)} cut after {self._plan.drain_s} s"
        return ExitCode.DRAIN_RAN_OUT, f"{self._by}: the drain did not finish: {why}"

    def cut_short(self, again: str) -> tuple[ExitCode, str]:
        """Return exit code and reason when a second stop is requested."""
        if not self.settling:
            self._left = fewest(self._began_with, count_connections(self._plan.port))
        return ExitCode.DRAIN_RAN_OUT, f"{again} while draining: {describe_requests(self._left)} cut"

    def ran_out(self) -> tuple[ExitCode, str]:
        """Return exit code and reason for an engine that does not end."""
        cut = f"{describe_requests(self._left)} cut"
        return ExitCode.DRAIN_RAN_OUT, f"{self._by}: killed, not drained after {self._plan.stop_s} s: {cut}"

    def _in_time(self) -> bool:
        return time.monotonic() - self._began_s < max(self._plan.drain_s, 1)
