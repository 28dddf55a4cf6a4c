"""Whether the engine's server answers at all: what clients feel long before a hang is certain."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from servekit.serve.watch.probe import EngineClient

_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Silent:
    """The server has answered nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Speaks:
    """The server answers again, after so many seconds."""

    seconds: float


class Silence:
    """Asks `/health` again and again, and posts when no answer has come for `silent_s`, and when one comes again.

    An answer that is late is an answer: one question stands until it is answered, however long that takes (`give_up_s`
    only bounds a connection that is lost), and a second thread looks at the time. A busy server that answers each
    question after nine seconds is slow and not silent.
    """

    def __init__(
        self,
        client: EngineClient,
        silent_s: float,
        give_up_s: float,
        post: Callable[[Silent | Speaks], None],
        over: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._silent_s = silent_s
        self._give_up_s = max(give_up_s, silent_s)
        self._post = post
        self._over = over
        self._clock = clock
        self._answered = threading.Event()

    def start(self) -> None:
        """Begin to ask; `over` ends it."""
        threading.Thread(target=self._ask, name="silence-asks", daemon=True).start()
        threading.Thread(target=self._judge, name="silence-judges", daemon=True).start()

    def _ask(self) -> None:
        while not self._over.wait(min(_INTERVAL_S, self._silent_s / 4)):
            if self._client.answers(timeout_s=self._give_up_s):
                self._answered.set()

    def _judge(self) -> None:
        heard_s, silent = self._clock(), False
        while not self._over.is_set():
            if self._answered.wait(self._silent_s if not silent else _INTERVAL_S):
                self._answered.clear()
                now_s = self._clock()
                if silent:
                    self._post(Speaks(now_s - heard_s))
                heard_s, silent = now_s, False
            elif not silent:
                silent = True
                self._post(Silent(self._silent_s))
