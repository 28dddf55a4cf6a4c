"""Start the engine, watch it, stop it, report how it ended. One loop decides; threads and signals only post events."""

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from servekit.errors import ExitCode
from servekit.logs import ENGINE_LOGGER
from servekit.serve.download import Download, DownloadReader
from servekit.serve.drain import Drain
from servekit.serve.engine.cause import describe_exit
from servekit.serve.engine.engine_output import EngineOutput
from servekit.serve.engine.last_requests import in_flight_lines, repeated_lines
from servekit.serve.engine.oom import OomWatcher
from servekit.serve.engine.process import Engine
from servekit.serve.events import Event, Exited, StopRequested, ThreadEndedError
from servekit.serve.guard import InFlight
from servekit.serve.phases import deadline_of, phase_of
from servekit.serve.plan import Plan
from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.watch.probe import EngineClient, Settled
from servekit.serve.watch.silence import Recovered, Silent
from servekit.serve.watch.watcher import ContractRead, Hung, Ready, Unfit, Unhealthy, Watch
from servekit.thread_pool import ThreadPool

_PROGRESS_S = 5.0
"""How often a line is logged while the engine loads or drains."""
_TICK_S = 0.25
"""The longest wait for an event. A signal that arrives just before a wait begins does not interrupt it, and Python runs
the handler only after the wait: a longer wait would delay the stop by as much."""
_DYING_S = 3.0
"""After `/health` has turned 503, vLLM 0.20.2 ends within 5 s (entrypoints/launcher.py, watchdog_loop) plus some time
to clean up. Its clients have their errors already, so servekit waits no longer than this."""
_KILL_S = 10.0
"""How long the keeper may take to kill everything before servekit kills the process group itself."""
_LAST_DEATH = "last_death.json"
_RECENT_S = 30.0
"""Exceptions older than this are ignored when looking for the cause of death."""

logger = logging.getLogger(__name__)
engine_log = logging.getLogger(ENGINE_LOGGER)


class Supervisor:
    """One endpoint from its start to its end. `run` returns the exit code; any thread may call `request_stop`."""

    def __init__(
        self,
        plan: Plan,
        store: StatusStore,
        client: EngineClient,
        environment: Mapping[str, str],
        *,
        in_flight: Callable[[], Sequence[InFlight]] = list,
        gpu_errors: Callable[[], str] = str,
        check_download: Callable[[], str] = str,
    ) -> None:
        """Supervise `plan`; after a death `in_flight` returns what ran, `gpu_errors` what the GPU reported.

        After a download `check_download` returns why the model cannot be served, if it cannot.
        """
        self._check_download = check_download
        self._in_flight = in_flight
        self._gpu_errors = gpu_errors
        self._plan = plan
        self._store = store
        self._client = client
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._output = EngineOutput()
        self._download = DownloadReader()
        self._engine = Engine(
            plan.command, environment, on_line=self._take_line, on_exit=lambda code: self._events.put(Exited(code))
        )
        self._oom = OomWatcher()
        self._workers = ThreadPool(1, most=1)
        self.watch = Watch(client, plan.served_name, plan.arguments, plan.loaded, plan.patience, self._events.put)

    def report_thread(self, ended: threading.ExceptHookArgs) -> None:
        """End with a bug: a thread has ended unasked. To be `threading.excepthook`."""
        logger.error("a thread has ended", exc_info=ended.exc_value)
        name, error = getattr(ended.thread, "name", "?"), ended.exc_value
        self._events.put(ThreadEndedError(f"a bug in servekit: its thread {name} has ended: {error!r}"))

    def request_stop(self, by: str) -> None:
        """Request a drain; a second one kills the engine immediately. Safe in a signal handler: it only enqueues."""
        self._events.put(StopRequested(by))

    def run(self) -> ExitCode:
        """Serve until a stop is requested or the engine fails; return why it ended."""
        try:
            if not self._events.empty() and self._next():
                return self._end(ExitCode.STOPPED, "stopped before the engine was started")
        except ThreadEndedError as error:
            return self._end(ExitCode.BUG, str(error))
        downloads = self._plan.hub is not None and self._plan.hub.prefix != ()
        self._begin(Phase.DOWNLOAD if downloads else Phase.IMPORTS)
        try:
            self._store.record(engine_pid=self._engine.start())
        except OSError as error:
            return self._end(ExitCode.START_FAILED, f"cannot start the engine: {error}")
        self.watch.start()
        try:
            ended = self._await_download() if downloads else None
            if ended is None:
                ended = self._await_ready()
            return self._serve() if ended is None else ended
        except ThreadEndedError as error:
            self._kill_despite_threads()
            return self._end(ExitCode.BUG, str(error))
        finally:
            self.watch.stop()
            self._oom.close()
            self._workers.close()

    def _begin(self, phase: Phase) -> None:
        what = "the engine is loading" if phase is Phase.IMPORTS else "downloading the model"
        self._store.enter(State.STARTING, what)
        self._enter_phase(phase)

    def _await_download(self) -> ExitCode | None:
        """Wait until the model is downloaded and checked; return the exit code if it cannot be served."""
        while True:
            deadline_s, stalled = deadline_of(self._store.read(), self._plan.start_s)
            match self._next(deadline_s):
                case Download() as download:
                    self._store.record_download(download)
                    if download.commit:
                        logger.info("downloaded and verified: %s, commit %s", self._plan.model, download.commit)
                        if reason := self._check_download():
                            self._kill()
                            return self._end(ExitCode.PREFLIGHT, reason)
                        self._begin(Phase.IMPORTS)
                        return None
                    if download.noted:
                        level = logging.WARNING if download.problem else logging.INFO
                        logger.log(level, "starting: download: %s", download)
                case StopRequested(by):
                    return self._stop_start(by)
                case Exited(code):
                    known = self._store.read().download
                    problem = (known and known.problem) or self._output.cause() or "no reason found in its output"
                    return self._end(ExitCode.START_FAILED, f"the download failed, {describe_exit(code)}: {problem}")
                case None:
                    self._kill()
                    return self._end(ExitCode.START_FAILED, stalled)

    def _await_ready(self) -> ExitCode | None:
        """Wait until the engine is ready; return the exit code if it never gets ready."""
        while True:
            deadline_s, limit = deadline_of(self._store.read(), self._plan.start_s)
            match self._next(deadline_s, self._log_start):
                case Phase() as phase:
                    self._enter_phase(phase)
                case ContractRead(items):
                    self._store.record(contract=items)
                case Ready():
                    self._store.enter(State.READY, "the engine answers")
                    self._log_ready()
                    return None
                case StopRequested(by):
                    return self._stop_start(by)
                case Unfit(reason, exit_code):
                    self._kill()
                    return self._end(exit_code, reason)
                case Exited(code):
                    self._log_last_lines(in_flight=False)
                    cause = self._output.cause() or "no reason found in its output"
                    how = self._with_witnesses(describe_exit(code))
                    return self._end(ExitCode.START_FAILED, f"the engine ended before it was ready, {how}: {cause}")
                case None:
                    self._kill()
                    self._log_last_lines(in_flight=False)
                    return self._end(ExitCode.START_FAILED, limit)

    def _stop_start(self, by: str) -> ExitCode:
        """Kill: vLLM 0.20.2 loses a SIGTERM while it initialises, and no request is running yet."""
        self._store.enter(State.DRAINING, f"{by} during the start")
        self._kill()
        return self._end(ExitCode.STOPPED, f"{by} during the start: the engine was killed")

    def _serve(self) -> ExitCode:
        """Serve until the engine exits or must be stopped; return the exit code."""
        while True:
            match self._next():
                case StopRequested(by):
                    return self._drain(by)
                case Exited(code):
                    return self._end_dead(code)
                case Unhealthy():
                    self._store.enter(State.FAILED, "the engine reports on /health that it is dead")
                    logger.error("the engine reports on /health that it is dead; waiting for it to exit")
                    ended_with = self._await_exit(_DYING_S, or_stop=True)
                    if ended_with is None:
                        self._kill()
                    return self._end_dead(ended_with)
                case Silent(seconds):
                    self._change(State.SILENT, f"the engine's server has not answered for {seconds:g} s")
                case Recovered(seconds):
                    self._change(State.READY, f"the engine's server answers again, after {seconds:.1f} s")
                case Hung(seconds):
                    reason = f"the engine hangs: it has work and made no progress for {seconds:.0f} s"
                    self._store.enter(State.FAILED, reason)
                    self._kill()
                    self._log_last_lines(in_flight=True)
                    return self._end(ExitCode.ENGINE_HUNG, self._with_witnesses(reason))

    def _drain(self, by: str) -> ExitCode:
        """Let running requests finish; kill what is left when the time is over or a second stop is requested."""
        self._store.enter(State.DRAINING, by)
        self.watch.stop()
        drain = Drain(by, self._plan)
        drain.settle(self._client, self._workers, self._events.put)
        while True:
            match self._next(drain.deadline_s, drain.log_progress, drain.count):
                case Exited(code):
                    failed = len(self._in_flight())
                    if code or failed:
                        self._log_last_lines(in_flight=True)
                    return self._end(*drain.ended(code, failed))
                case StopRequested(again):
                    ending = drain.cut_short(again)
                    self._kill()
                    return self._end(*ending)
                case (Settled() | None) as settled if drain.settling:
                    drain.begin(settled or Settled(None, arrived=False))
                    self._client.close()  # an idle connection of servekit's own would look like a request
                    self._engine.terminate()
                case None:
                    self._kill()
                    return self._end(*drain.ran_out())

    def _kill(self) -> None:
        """Kill every process of the engine and wait until all have ended."""
        self.watch.stop()
        self._engine.kill()
        if self._await_exit(_KILL_S) is None:
            self._engine.sweep()

    def _kill_despite_threads(self) -> None:
        """Kill, and wait again whenever one more thread ends: the cause of the first often ends others too."""
        while True:
            with contextlib.suppress(ThreadEndedError):
                return self._kill()

    def _await_exit(self, within_s: float, *, or_stop: bool = False) -> int | None:
        """Return the engine's exit code; None when the time is over, or at a stop request if `or_stop`."""
        deadline_s = time.monotonic() + within_s
        while True:
            match self._next(deadline_s):
                case Exited(code):
                    return code
                case (StopRequested() | None) as event if event is None or or_stop:
                    return None

    def _next(
        self,
        deadline_s: float = math.inf,
        log_progress: Callable[[], None] = lambda: None,
        count: Callable[[], None] = lambda: None,
    ) -> Event | None:
        """Return the next event, or None at the deadline; meanwhile call `count` often, `log_progress` now and then."""
        logged_s = time.monotonic()
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=min(_TICK_S, left_s))
            except queue.Empty:
                count()
                if time.monotonic() - logged_s >= _PROGRESS_S:
                    logged_s = time.monotonic()
                    log_progress()
            else:
                if isinstance(event, ThreadEndedError):
                    raise event
                return event
        return None

    def _take_line(self, line: str) -> None:
        if download := self._download.read(line):
            self._events.put(download)
            return
        engine_log.info("%s", line)
        self._output.add(line)
        if phase := phase_of(line):
            self._events.put(phase)

    def _enter_phase(self, phase: Phase) -> None:
        if self._store.enter_phase(phase):
            logger.info("starting: %s (%.0f s in all)", phase, self._store.read().start_seconds(time.monotonic()))

    def _change(self, state: State, reason: str) -> None:
        self._store.enter(state, reason)
        logger.warning("%s: %s", "ready" if state is State.READY else "not ready", reason)

    def _log_start(self) -> None:
        status, now = self._store.read(), time.monotonic()
        *_, (phase, seconds) = status.timeline(now).items()
        logger.info("starting: %s for %.0f s (%.0f s in all)", phase, seconds, status.start_seconds(now))

    def _log_ready(self) -> None:
        status, now = self._store.read(), time.monotonic()
        parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in status.timeline(now).items())
        logger.info("ready after %.1f s: %s", status.start_seconds(now), parts)
        logger.info("model %s on %s/v1", self._plan.served_name, self._plan.url)

    def _log_last_lines(self, *, in_flight: bool) -> None:
        """Repeat the last lines of the engine; if it was serving, also list the requests in flight."""
        last = self._output.last()
        lines = [f"the engine's last {len(last)} lines:", *(f"  {line}" for line in last)]
        if in_flight:
            flights = self._in_flight()
            lines += in_flight_lines(flights, time.monotonic())
            lines += repeated_lines(flights, self._plan.run_dir / _LAST_DEATH)
        for line in lines:
            logger.error("%s", line)

    def _with_witnesses(self, how: str) -> str:
        """Add what the kernel reports about memory and the GPU about errors, if anything."""
        witnesses = {"kernel": self._oom.read(), "GPU": self._gpu_errors()}
        return how + "".join(f"; the {witness} reports: {text}" for witness, text in witnesses.items() if text)

    def _end_dead(self, code: int | None) -> ExitCode:
        """End after the engine's death; `code` is None where it was killed because it reported itself dead."""
        self._log_last_lines(in_flight=True)
        how = "killed after it had reported on /health that it was dead" if code is None else describe_exit(code)
        if code == 0:
            how += ", which vLLM also returns when its EngineCore has died"
        how = self._with_witnesses(how)
        since_s = max(time.monotonic() - _RECENT_S, self._store.read().over_s or -math.inf)
        cause = self._output.cause(since_s)
        return self._end(ExitCode.ENGINE_DIED, f"the engine ended while serving, {how}{': ' if cause else ''}{cause}")

    def _end(self, exit_code: ExitCode, reason: str) -> ExitCode:
        stopped = exit_code in {ExitCode.STOPPED, ExitCode.DRAIN_RAN_OUT}
        self._store.enter(State.STOPPED if stopped else State.FAILED, reason, exit_code=exit_code)
        level = logging.INFO if exit_code is ExitCode.STOPPED else logging.ERROR
        logger.log(level, "%s (exit code %d)", reason, exit_code)
        return exit_code
