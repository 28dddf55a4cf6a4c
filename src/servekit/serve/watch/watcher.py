"""Watch the engine from outside: is it up, is it what was planned, does it really answer, does it get on."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from servekit.errors import ExitCode
from servekit.profile import EngineArguments
from servekit.serve.guard import COUNTERS_PATH, EFFECTIVE_PATH
from servekit.serve.watch.probe import TIMEOUT_S, EngineClient, ProbeError
from servekit.serve.watch.progress import Progress, Reading, progress_marks
from servekit.serve.watch.running_contract import ContractItem, broken, compare_contract
from servekit.serve.watch.silence import Silence, Silent, Speaks

_START_INTERVAL_S = 0.25
_SERVE_INTERVAL_S = 1.0
_PROGRESS_INTERVAL_S = 5.0
"""Reading the engine's metrics costs its server some 10 ms, so it is done this rarely, or more often for a short
hang time."""
_SHORTEST_S = 0.05


@dataclass(frozen=True)
class HealthSeen:
    """`/health` answers 200 for the first time."""


@dataclass(frozen=True)
class ContractSeen:
    """The running engine has told its effective configuration."""

    items: tuple[ContractItem, ...]


@dataclass(frozen=True)
class Answered:
    """The engine serves the right model and has generated a token."""


@dataclass(frozen=True)
class Unfit:
    """The engine is up but is not what was planned: why, and the exit code that follows."""

    reason: str
    exit_code: ExitCode


@dataclass(frozen=True)
class Unhealthy:
    """The engine was ready, and `/health` is no longer 200."""


@dataclass(frozen=True)
class Hung:
    """The engine has work and has made no progress for so many seconds."""

    seconds: float


Observation = HealthSeen | ContractSeen | Answered | Unfit | Unhealthy | Hung | Silent | Speaks


@dataclass(frozen=True)
class HangPolicy:
    """How long an engine may make no progress, and how often an idle one is asked for a token (0: never); seconds."""

    hang_s: float
    canary_s: float = 0.0
    silent_s: float = 10.0
    """How long a server may answer nothing before the endpoint is not ready."""


class Watch:
    """A thread that asks the engine and posts what it sees; it changes nothing itself.

    A busy engine is only read, never asked for work. One that has requests and makes no progress for half the hang
    time gets a canary, a request for one token: work that only a wedged engine leaves undone.
    """

    def __init__(
        self,
        client: EngineClient,
        served_name: str,
        arguments: EngineArguments,
        patience: HangPolicy,
        post: Callable[[Observation], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._served_name = served_name
        self._arguments = arguments
        self._patience = patience
        self._post = post
        self._clock = clock
        self._over = threading.Event()
        self._canary: threading.Thread | None = None
        self.canary_tokens = 0
        """Tokens that canaries have made, for the metrics to tell them from the clients'."""

    def start(self) -> None:
        """Begin to ask."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Ask no more; an answer that is under way is dropped."""
        self._over.set()

    def _run(self) -> None:
        while not self._client.health():
            if self._over.wait(_START_INTERVAL_S):
                return
        self._tell(HealthSeen())
        verdict = self._verify()
        self._tell(verdict)
        if isinstance(verdict, Answered):
            silence = Silence(self._client, self._patience.silent_s, self._patience.hang_s, self._tell, self._over)
            silence.start()
            self._watch_serving()

    def _verify(self) -> Answered | Unfit:
        try:
            effective = self._client.get(EFFECTIVE_PATH)
            items = compare_contract(self._arguments, self._served_name, effective)
            self._tell(ContractSeen(items))
            if difference := broken(items):
                return Unfit(f"the contract is broken: {difference}", ExitCode.CONTRACT_BROKEN)
            names = self._client.served_models()
            if self._served_name not in names:
                reason = f"/v1/models lists {', '.join(names) or 'nothing'}, not {self._served_name}"
                return Unfit(reason, ExitCode.CONTRACT_BROKEN)
            tokens = self._client.generate_token(self._served_name)
            if tokens != 1:
                return Unfit(f"asked for one token, the engine made {tokens}", ExitCode.START_FAILED)
            self._client.warm_up(self._served_name)
        except ProbeError as error:
            return Unfit(f"the engine is up but does not answer: {error}", ExitCode.START_FAILED)
        return Answered()

    def _watch_serving(self) -> None:
        hang_s = self._patience.hang_s
        interval_s = min(_PROGRESS_INTERVAL_S, hang_s / 4)
        tick_s = min(_SERVE_INTERVAL_S, interval_s)
        progress = Progress(self._clock())
        read_s = asked_s = self._clock()

        def left_s() -> float:
            return progress.left_s(self._clock(), hang_s)

        # No pause and no question lasts longer than the hang time does: what is not answered then is the hang.
        while not self._over.wait(max(_SHORTEST_S, min(tick_s, left_s()))):
            if self._client.refuses_health(timeout_s=max(_SHORTEST_S, min(TIMEOUT_S, interval_s, left_s()))):
                self._tell(Unhealthy())
                return
            if self._clock() - read_s < interval_s and left_s() > 0:
                continue
            reading = self._read(lambda: max(tick_s, min(TIMEOUT_S, left_s())))
            now_s = read_s = self._clock()
            stalled_s = progress.observe(now_s, reading)
            if stalled_s >= hang_s:
                self._tell(Hung(stalled_s))
                return
            idle = not reading.pending and 0 < self._patience.canary_s <= now_s - asked_s
            if (stalled_s >= hang_s / 2 or idle) and not self._canary_pending():
                asked_s = now_s
                self._send_canary()

    def _read(self, timeout_s: Callable[[], float]) -> Reading:
        try:
            in_flight = int(self._client.get(COUNTERS_PATH, timeout_s=timeout_s())["in_flight"])
            marks = progress_marks(self._client.metrics(timeout_s=timeout_s()))
        except (ProbeError, KeyError):
            return Reading(pending=True, marks=None)
        return Reading(pending=in_flight > 0 or self._canary_pending(), marks=marks)

    def _canary_pending(self) -> bool:
        return self._canary is not None and self._canary.is_alive()

    def _send_canary(self) -> None:
        self._canary = threading.Thread(target=self._ask_for_token, name="canary", daemon=True)
        self._canary.start()

    def _ask_for_token(self) -> None:
        with contextlib.suppress(ProbeError):  # the counters tell whether the engine moved; they decide
            self.canary_tokens += self._client.generate_token(self._served_name)

    def _tell(self, observation: Observation) -> None:
        if not self._over.is_set():
            self._post(observation)
