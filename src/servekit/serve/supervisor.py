"""Start the engine, watch it, stop it, and say how it ended. One loop decides; threads and signals only post events."""

import logging
import math
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from servekit.errors import ExitCode, StartError
from servekit.logs import ENGINE_LOGGER
from servekit.serve.drain import Drain
from servekit.serve.engine.cause import describe_exit
from servekit.serve.engine.engine_output import EngineOutput
from servekit.serve.engine.last_requests import in_flight_lines
from servekit.serve.engine.oom import OomWatcher
from servekit.serve.engine.process import Engine
from servekit.serve.events import Entered, Event, Exited, StopAsked
from servekit.serve.guard import InFlight
from servekit.serve.phases import deadline_of, phase_of
from servekit.serve.plan import Plan
from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.watch.probe import EngineClient, Settled
from servekit.serve.watch.silence import Silent, Speaks
from servekit.serve.watch.watcher import Answered, ContractSeen, HealthSeen, Hung, Unfit, Unhealthy, Watch
from servekit.thread_pool import ThreadPool

_PROGRESS_S = 5.0
"""A line this often while the engine loads or drains."""
_TICK_S = 0.25
"""The longest wait for an event. A signal that arrives just before the wait begins does not interrupt it, and Python
runs its handler only afterwards: a stop would be heard that much later."""
_DYING_S = 3.0
"""After `/health` has turned 503, vLLM 0.20.2 ends within 5 s (entrypoints/launcher.py, watchdog_loop) and some time to
tidy up. Its clients have had their error at once, so it is not waited for longer than this."""
_KILL_S = 10.0
"""How long the keeper may take to kill everything before the process group is killed from here."""
_RECENT_S = 30.0
"""An exception the engine survived for longer than this is not what it died of."""

logger = logging.getLogger(__name__)
engine_log = logging.getLogger(ENGINE_LOGGER)


class StartEngine(Protocol):
    """How an engine is made: `Engine` itself, or a stand-in of a test."""

    def __call__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        on_line: Callable[[str], None],
        on_exit: Callable[[int], None],
    ) -> Engine: ...


class Supervisor:
    """One endpoint from its start to its end. `run` returns the exit code; `ask_to_stop` may come from anywhere."""

    def __init__(
        self,
        plan: Plan,
        board: StatusStore,
        client: EngineClient,
        environment: Mapping[str, str],
        *,
        in_flight: Callable[[], Sequence[InFlight]] = list,
        gpu_errors: Callable[[], str] = str,
        make_engine: StartEngine = Engine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Supervise `plan`; `in_flight` and `gpu_errors` tell after a death what ran and what the GPU reported."""
        self._in_flight = in_flight
        self._gpu_errors = gpu_errors
        self._plan = plan
        self._board = board
        self._client = client
        self._clock = clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._heard = EngineOutput(clock)
        self._engine = make_engine(
            plan.argv, environment, on_line=self._hear, on_exit=lambda code: self._events.put(Exited(code))
        )
        self._kernel = OomWatcher()
        self._workers = ThreadPool(1)
        self._watch = Watch(client, plan.served_name, plan.arguments, plan.patience, self._events.put)

    def ask_to_stop(self, by: str) -> None:
        """Ask for a drain; asked again, it ends at once. Safe in a signal handler: it only enqueues."""
        self._events.put(StopAsked(by))

    @property
    def canary_tokens(self) -> int:
        """Tokens made for servekit's own canaries so far."""
        return self._watch.canary_tokens

    def run(self) -> ExitCode:
        """Serve until asked to stop or until the engine fails; return why it ended."""
        if not self._events.empty():  # asked to stop before there was anything to stop
            return self._end(ExitCode.STOPPED, "asked to stop before the engine was started")
        self._board.enter(State.STARTING, "the engine is loading")
        self._see_phase(Phase.IMPORTS)
        started_s = self._clock()
        try:
            self._board.note(engine_pid=self._engine.start())
        except StartError as error:
            return self._end(ExitCode.START_FAILED, str(error))
        self._watch.start()
        try:
            ended = self._await_ready(started_s)
            return ended if ended is not None else self._serve()
        finally:
            self._watch.stop()
            self._kernel.close()
            self._workers.close()

    def _await_ready(self, started_s: float) -> ExitCode | None:
        """Wait until the engine is ready; return the exit code if it never became so."""
        while True:
            deadline_s, limit = deadline_of(self._board.read(), started_s, self._plan.start_s)
            match self._next(deadline_s, self._tell_start):
                case Answered():
                    self._board.enter(State.READY, "the engine answers")
                    self._tell_ready()
                    return None
                case StopAsked(by):
                    # vLLM 0.20.2 loses a SIGTERM while it initialises, and nothing is running yet.
                    self._board.enter(State.DRAINING, f"{by} during the start")
                    self._kill()
                    return self._end(ExitCode.STOPPED, f"{by} during the start: the engine was ended")
                case Unfit(reason, exit_code):
                    self._kill()
                    return self._end(exit_code, reason)
                case Exited(code):
                    self._repeat_lines()
                    cause = self._heard.cause() or "no reason found in its output"
                    return self._end(
                        ExitCode.START_FAILED,
                        f"the engine ended before it was ready, {self._with_witnesses(describe_exit(code))}: {cause}",
                    )
                case None:
                    self._kill()
                    self._repeat_lines()
                    remedy = "give it longer with SERVEKIT_START_S, or look at the engine's last lines"
                    return self._end(ExitCode.START_FAILED, f"{limit}; {remedy}")
                case news:
                    self._note(news)

    def _note(self, news: Event) -> None:
        """Write down what was learnt of a start that goes on."""
        match news:
            case Entered(phase):
                self._see_phase(phase)
            case HealthSeen():
                self._see_phase(Phase.VERIFY)
            case ContractSeen(items):
                self._board.note(contract=items)
            case _:
                pass  # the rest belongs to a later state

    def _serve(self) -> ExitCode:
        """Serve until something happens; return the exit code."""
        while True:
            match self._next(None, lambda: None):
                case StopAsked(by):
                    return self._drain(by)
                case Exited(code):
                    return self._died(code)
                case Unhealthy():
                    self._board.enter(State.FAILED, "the engine says it is dead (/health)")
                    logger.error("the engine says on /health that it is dead; waiting for its end")
                    return self._await_death(self._clock() + _DYING_S)
                case Silent(seconds):
                    reason = f"the engine's server has answered nothing for {seconds:g} s"
                    self._board.enter(State.SILENT, reason)
                    logger.warning("not ready: %s", reason)
                case Speaks(seconds):
                    reason = f"the engine's server answers again, after {seconds:.1f} s"
                    self._board.enter(State.READY, reason)
                    logger.warning("ready: %s", reason)
                case Hung(seconds):
                    reason = f"the engine hangs: it has work and made no progress for {seconds:.0f} s"
                    self._board.enter(State.FAILED, reason)
                    self._kill()
                    self._repeat_lines()
                    self._tell_in_flight()
                    return self._end(ExitCode.ENGINE_HUNG, self._with_witnesses(reason))
                case _:
                    pass

    def _await_death(self, deadline_s: float) -> ExitCode:
        while True:
            match self._next(deadline_s, lambda: None):
                case Exited(code):
                    return self._died(code)
                case StopAsked() | None:
                    self._kill()
                    return self._died(None)
                case _:
                    pass

    def _died(self, code: int | None) -> ExitCode:
        """Tell the end of an engine with this exit code; None: it said it was dead and was killed for it."""
        self._repeat_lines()
        self._tell_in_flight()
        how = "killed after it had said on /health that it was dead" if code is None else describe_exit(code)
        if code == 0:
            how += ", which vLLM gives also when its EngineCore has died"
        how = self._with_witnesses(how)
        cause = self._heard.cause(max(self._clock() - _RECENT_S, self._board.read().ready_at or -math.inf))
        return self._end(ExitCode.ENGINE_DIED, f"the engine ended while serving, {how}{': ' if cause else ''}{cause}")

    def _with_witnesses(self, how: str) -> str:
        """Add what the kernel says about memory, and the GPU about itself, where they say something."""
        kernel, gpu = self._kernel.read(), self._gpu_errors()
        how = f"{how}; the kernel says: {kernel}" if kernel else how
        return f"{how}; the GPU reports: {gpu}" if gpu else how

    def _drain(self, by: str) -> ExitCode:
        """Let running requests finish; kill what is left when the time is over or somebody asks again."""
        self._board.enter(State.DRAINING, by)
        self._watch.stop()
        drain = Drain(by, self._plan, self._clock)
        drain.settle(self._client, self._workers, self._events.put)
        while True:
            match self._next(drain.deadline_s, drain.tell, drain.look):
                case Exited(code):
                    return self._end(*drain.ended(code))
                case StopAsked(again):
                    ending = drain.cut_short(again)
                    self._kill()
                    return self._end(*ending)
                case Settled() as settled if drain.settling:
                    self._stop_engine(drain, settled)
                case None if drain.settling:
                    self._stop_engine(drain, Settled(None, arrived=False))
                case None:
                    self._kill()
                    return self._end(*drain.ran_out())
                case _:
                    pass

    def _stop_engine(self, drain: Drain, settled: Settled) -> None:
        drain.begin(settled)
        self._client.close()  # an idle connection of servekit's own would look like a request
        self._engine.terminate()

    def _kill(self) -> None:
        """Kill every process of the engine and wait for the news."""
        self._watch.stop()
        self._engine.kill()
        deadline_s = self._clock() + _KILL_S
        while True:
            match self._next(deadline_s, lambda: None):
                case Exited():
                    return
                case None:
                    self._engine.sweep()
                    return
                case _:
                    pass

    def _next(
        self, deadline_s: float | None, progress: Callable[[], None], look: Callable[[], None] | None = None
    ) -> Event | None:
        """Return the next event, or None at the deadline.

        Meanwhile call `progress`, which tells the user, every few seconds, and `look`, which only counts, more often.
        """
        told_s = self._clock()
        while True:
            now_s = self._clock()
            left_s = math.inf if deadline_s is None else deadline_s - now_s
            if left_s <= 0:
                return None
            try:
                return self._events.get(timeout=min(_TICK_S, left_s))
            except queue.Empty:
                if look is not None:
                    look()
                if self._clock() - told_s >= _PROGRESS_S:
                    told_s = self._clock()
                    progress()

    def _hear(self, line: str) -> None:
        engine_log.info("%s", line)
        self._heard.add(line)
        phase = phase_of(line)
        if phase is not None:
            self._events.put(Entered(phase))

    def _see_phase(self, phase: Phase) -> None:
        if self._board.see_phase(phase):
            logger.info("starting: %s (%.0f s in all)", phase, self._board.read().start_seconds(self._clock()))

    def _tell_start(self) -> None:
        now = self._clock()
        status = self._board.read()
        span = status.timeline(now)[-1]
        logger.info("starting: %s for %.0f s (%.0f s in all)", span.phase, span.seconds, status.start_seconds(now))

    def _tell_ready(self) -> None:
        now = self._clock()
        status = self._board.read()
        parts = ", ".join(f"{span.phase} {span.seconds:.1f} s" for span in status.timeline(now))
        logger.info("ready after %.1f s: %s", status.start_seconds(now), parts)
        logger.info("model %s on %s/v1", self._plan.served_name, self._plan.url)

    def _tell_in_flight(self) -> None:
        for line in in_flight_lines(self._in_flight(), self._clock()):
            logger.error("%s", line)

    def _repeat_lines(self) -> None:
        last = self._heard.last()
        logger.error("the engine's last %d lines:", len(last))
        for line in last:
            logger.error("  %s", line)

    def _end(self, exit_code: ExitCode, reason: str) -> ExitCode:
        well = exit_code in {ExitCode.STOPPED, ExitCode.DRAIN_RAN_OUT}
        self._board.enter(State.STOPPED if well else State.FAILED, reason, exit_code=exit_code)
        logger.log(
            logging.INFO if exit_code is ExitCode.STOPPED else logging.ERROR,
            "%s (exit code %d)",
            reason,
            exit_code,
        )
        return exit_code
