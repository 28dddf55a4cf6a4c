"""Whether the engine's server answers at all: clients notice that long before a hang is certain."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from servekit.serve.watch.probe import EngineClient

_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Lasted:
    """Something that lasted for this many seconds."""

    seconds: float


class Silent(Lasted):
    """The server has not answered for this many seconds."""


class Recovered(Lasted):
    """The server answers again, after this many seconds."""


class Silence:
    """Queries `/health` repeatedly; posts when no answer has come for `silent_s`, and when one comes again.

    A late answer is an answer: one query stays open until it is answered, however long that takes (`give_up_s` only
    bounds a lost connection), and a second thread watches the time. A busy server that answers each query after nine
    seconds is slow, not silent.
    """

    def __init__(
        self,
        client: EngineClient,
        silent_s: float,
        give_up_s: float,
        post: Callable[[Silent | Recovered], None],
        stopped: threading.Event,
    ) -> None:
        self._client = client
        self._silent_s = silent_s
        self._give_up_s = max(give_up_s, silent_s)
        self._post = post
        self._stopped = stopped
        self._answered = threading.Event()

    def start(self) -> None:
        """Start both threads; `stopped` ends them."""
        threading.Thread(target=self._query, name="silence-query", daemon=True).start()
        threading.Thread(target=self._judge, name="silence-judge", daemon=True).start()

    def _query(self) -> None:
        while not self._stopped.wait(min(_INTERVAL_S, self._silent_s / 4)):
            if self._client.health(timeout_s=self._give_up_s):
                self._answered.set()

    def _judge(self) -> None:
        answered_s, silent = time.monotonic(), False
        while not self._stopped.is_set():
            if self._answered.wait(_INTERVAL_S if silent else self._silent_s):
                self._answered.clear()
                now_s = time.monotonic()
                if silent:
                    self._post(Recovered(now_s - answered_s))
                answered_s, silent = now_s, False
            elif not silent:
                silent = True
                self._post(Silent(self._silent_s))
