"""Watch the engine from outside: it must be up, be what was planned, answer, and make progress."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from servekit.errors import ExitCode
from servekit.profile import EngineArguments
from servekit.serve.guard import COUNTERS_PATH, EFFECTIVE_PATH
from servekit.serve.status import Phase
from servekit.serve.watch.probe import TIMEOUT_S, EngineClient, ProbeError
from servekit.serve.watch.progress import Marks, Progress, progress_marks
from servekit.serve.watch.running_contract import ContractItem, broken, compare_contract
from servekit.serve.watch.silence import Lasted, Recovered, Silence, Silent

_START_INTERVAL_S = 0.25
_SERVE_INTERVAL_S = 1.0
_PROGRESS_INTERVAL_S = 5.0
"""Reading the engine's metrics costs its server some 10 ms, so the watch reads them only this often; more often
if the hang time is short."""
_SHORTEST_S = 0.05
_ALIVE = {HTTPStatus.OK, None}


class Ready:
    """The engine serves the right model and has generated a token."""


class Unhealthy:
    """The engine was ready, and `/health` no longer returns 200."""


class Hung(Lasted):
    """The engine has work and made no progress for this many seconds."""


@dataclass(frozen=True)
class ContractRead:
    """The running engine has reported its effective configuration."""

    items: tuple[ContractItem, ...]


@dataclass(frozen=True)
class Unfit:
    """The engine is up but differs from the plan, or does not work: why, and the exit code that follows."""

    reason: str
    exit_code: ExitCode


Observation = Phase | ContractRead | Ready | Unfit | Unhealthy | Hung | Silent | Recovered


@dataclass(frozen=True)
class HangPolicy:
    """How long an engine may make no progress, and how often an idle one gets a canary (0: never); seconds."""

    hang_s: float
    canary_s: float = 0.0
    silent_s: float = 10.0
    """How long a server may not answer before the endpoint is not ready."""


class Watch:
    """A thread that queries the engine and posts what it finds; it changes nothing itself.

    It only reads from a busy engine, and gives it no work. An engine that has requests and makes no progress for half
    the hang time gets a canary, a request for one token: only a wedged engine leaves that undone.
    """

    def __init__(
        self,
        client: EngineClient,
        served_name: str,
        arguments: EngineArguments,
        loaded: Mapping[str, str],
        policy: HangPolicy,
        post: Callable[[Observation], None],
    ) -> None:
        self._client = client
        self._served_name = served_name
        self._arguments = arguments
        self._loaded = loaded
        self._policy = policy
        self._post = post
        self._stopped = threading.Event()
        self._canary: threading.Thread | None = None
        self.canary_tokens = 0
        """Tokens that canaries have generated, so that the metrics can subtract them from the clients'."""

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread; a pending answer is dropped."""
        self._stopped.set()

    def _run(self) -> None:
        while self._client.health() != HTTPStatus.OK:
            if self._stopped.wait(_START_INTERVAL_S):
                return
        self._report(Phase.VERIFY)
        verdict = self._verify()
        self._report(verdict)
        if isinstance(verdict, Ready):
            Silence(self._client, self._policy.silent_s, self._policy.hang_s, self._report, self._stopped).start()
            self._watch_serving()

    def _verify(self) -> Ready | Unfit:
        try:
            effective = self._client.get(EFFECTIVE_PATH)
            items = compare_contract(self._arguments, self._served_name, effective, self._loaded)
            self._report(ContractRead(items))
            if difference := broken(items):
                return Unfit(f"the contract is broken: {difference}", ExitCode.CONTRACT_BROKEN)
            names = self._client.served_models()
            if self._served_name not in names:
                listed = ", ".join(names) or "nothing"
                return Unfit(f"/v1/models lists {listed}, not {self._served_name}", ExitCode.CONTRACT_BROKEN)
            tokens = self._client.generate_token(self._served_name)
            if tokens != 1:
                return Unfit(f"the engine generated {tokens} tokens instead of 1", ExitCode.START_FAILED)
            self._client.warm_up(self._served_name)
        except ProbeError as error:
            return Unfit(f"the engine is up but does not answer: {error}", ExitCode.START_FAILED)
        return Ready()

    def _watch_serving(self) -> None:
        hang_s = self._policy.hang_s
        interval_s = min(_PROGRESS_INTERVAL_S, hang_s / 4)
        tick_s = min(_SERVE_INTERVAL_S, interval_s)
        read_s = sent_s = time.monotonic()
        progress = Progress(read_s)

        def left_s() -> float:
            return progress.left_s(time.monotonic(), hang_s)

        # No pause and no query lasts longer than the hang time: an engine that has not answered by then hangs.
        while not self._stopped.wait(max(_SHORTEST_S, min(tick_s, left_s()))):
            # No answer (None) does not mean dead: an overloaded server may take long to answer.
            if self._client.health(timeout_s=max(_SHORTEST_S, min(TIMEOUT_S, interval_s, left_s()))) not in _ALIVE:
                return self._report(Unhealthy())
            if time.monotonic() - read_s < interval_s and left_s() > 0:
                continue
            pending, quiet_s, marks = self._read(lambda: max(tick_s, min(TIMEOUT_S, left_s())))
            now_s = read_s = time.monotonic()
            stalled_s = progress.record(now_s, marks, pending=pending, quiet_s=quiet_s)
            if stalled_s >= hang_s:
                return self._report(Hung(stalled_s))
            idle = not pending and 0 < self._policy.canary_s <= now_s - sent_s
            if (stalled_s >= hang_s / 2 or idle) and not self._canary_pending():
                sent_s = now_s
                self._canary = threading.Thread(target=self._query_token, name="canary", daemon=True)
                self._canary.start()
        return None

    def _read(self, timeout_s: Callable[[], float]) -> tuple[bool, float, Marks | None]:
        """Return whether the engine has work, how long its core has been quiet, and its progress: None: no answer."""
        try:
            marks = progress_marks(self._client.metrics(timeout_s=timeout_s()))
            counters = self._client.get(COUNTERS_PATH, timeout_s=timeout_s())
            in_flight, quiet_s = int(counters["in_flight"]), float(counters.get("quiet_s", 0))
        except (ProbeError, KeyError):
            return True, 0.0, None
        return in_flight > 0 or self._canary_pending(), quiet_s, marks

    def _canary_pending(self) -> bool:
        return self._canary is not None and self._canary.is_alive()

    def _query_token(self) -> None:
        with contextlib.suppress(ProbeError):  # the counters show whether the engine moved; they decide
            self.canary_tokens += self._client.generate_token(self._served_name)

    def _report(self, observation: Observation) -> None:
        if not self._stopped.is_set():
            self._post(observation)
