"""The end that was asked for: new requests are refused, running ones finish or are cut, and both are counted."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from servekit.errors import ExitCode
from servekit.serve.engine.cause import describe_exit
from servekit.serve.plan import Plan
from servekit.serve.watch.probe import EngineClient, Settled
from servekit.thread_pool import ThreadPool

_ANSWER_S = 1.0
"""What the guard may take to answer beside the settling. One that does not answer must not hold up the stop."""

_ESTABLISHED = "01"
"""The state's number in proc(5)'s net/tcp; a connection whose client has hung up has another."""
_TABLES = ("net/tcp", "net/tcp6")

logger = logging.getLogger(__name__)


def count_connections(port: int, *, proc: Path = Path("/proc/self")) -> int | None:
    """Return the number of clients connected to `port` on this host; None where the kernel does not tell."""
    found: int | None = None
    for table in _TABLES:
        try:
            rows = (proc / table).read_text(encoding="ascii", errors="replace").splitlines()[1:]
        except OSError:
            continue
        local_states = (row.split()[1:4:2] for row in rows)
        found = (found or 0) + sum(
            state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port for local, state in local_states
        )
    return found


class Remaining:
    """The requests that ran when the drain began, and how many of them may still run.

    vLLM 0.20.2 closes its port and every idle connection at SIGTERM, so each connection that is left carries a
    request. The smaller of the two counts is told: a connection a client holds open without a request is no request.
    """

    def __init__(
        self, began_with: int | None, port: int, *, connections: Callable[[int], int | None] = count_connections
    ) -> None:
        self.began_with = began_with
        self._port = port
        self._connections = connections
        self.count = began_with
        """As seen last; None where nobody tells."""

    def look(self) -> int | None:
        """Count again, and return the count."""
        known = [count for count in (self.began_with, self._connections(self._port)) if count is not None]
        self.count = min(known) if known else None
        return self.count

    def __str__(self) -> str:
        """`8 running requests`, as seen last."""
        if self.count is None:
            return "running requests"
        return f"{self.count or 'no'} running request{'' if self.count == 1 else 's'}"


class Drain:
    """One drain: first the guard refuses what is new and says when the rest has reached EngineCore, then SIGTERM."""

    def __init__(self, by: str, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._by = by
        self._plan = plan
        self._clock = clock
        self._began_s = clock()
        self._remaining = Remaining(None, plan.port)
        self.settling = True
        """Whether the engine has still to be told to stop."""

    def settle(self, client: EngineClient, workers: ThreadPool, post: Callable[[Settled], None]) -> None:
        """Ask the guard, on a worker, and post what it says."""
        client.close()  # a connection the server has just given up would make the guard seem to be gone
        within_s = self._plan.settle_s + _ANSWER_S
        workers.run(lambda: post(client.drain(within_s=within_s)))

    def begin(self, settled: Settled) -> None:
        """Take down what runs; the engine is told to stop now."""
        self.settling = False
        self._remaining = Remaining(settled.in_flight, self._plan.port)
        logger.info("%s: draining, %s, at most %d s to finish", self._by, self._remaining, self._plan.drain_s)
        if not settled.arrived and self._plan.settle_s:
            what = "the guard does not answer" if settled.in_flight is None else "the engine does not take requests"
            logger.warning("%s: those that came in the last moment may be answered with nothing", what)

    @property
    def deadline_s(self) -> float:
        """The second at which this is over: the wait for the guard, then the whole drain."""
        return self._began_s + (self._plan.settle_s + _ANSWER_S if self.settling else self._plan.stop_s)

    def tell(self) -> None:
        """Log how far it is."""
        spent_s = self._clock() - self._began_s
        logger.info("draining for %.0f s of at most %d s, %s left", spent_s, self._plan.drain_s, self._remaining)

    def look(self) -> None:
        """Count what is left, until vLLM begins to cut."""
        if not self.settling and self._in_time():
            self._remaining.look()

    def ended(self, code: int) -> tuple[ExitCode, str]:
        """Return the exit code and the reason after the engine has ended with `code`."""
        # vLLM kills its EngineCore when its own timeout runs out, and then ends with 0 all the same.
        if code == 0 and (self._in_time() or self._remaining.count == 0):
            return ExitCode.STOPPED, f"{self._by}: drained"
        why = describe_exit(code) if code else f"{self._remaining} cut after {self._plan.drain_s} s"
        return ExitCode.DRAIN_RAN_OUT, f"{self._by}: the drain did not finish: {why}"

    def cut_short(self, again: str) -> tuple[ExitCode, str]:
        """Return the same for a drain that somebody asks to end at once."""
        if not self.settling:
            self._remaining.look()
        return ExitCode.DRAIN_RAN_OUT, f"{again} while draining: {self._remaining} cut"

    def ran_out(self) -> tuple[ExitCode, str]:
        """Return the same for an engine that does not end."""
        reason = f"{self._by}: killed, not drained after {self._plan.stop_s} s: {self._remaining} cut"
        return ExitCode.DRAIN_RAN_OUT, reason

    def _in_time(self) -> bool:
        return self._clock() - self._began_s < max(self._plan.drain_s, 1)
