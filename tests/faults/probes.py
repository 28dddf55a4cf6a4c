"""What /livez and /readyz answer over time, asked without a pause by one thread each."""

import http.client
import threading
import time

from tests.engine.conftest import descendants

_INTERVAL_S = 0.01
_PROCESSES_INTERVAL_S = 0.25
_TIMEOUT_S = 10

Answer = tuple[str, int]
"""The state a probe's text names, and its HTTP status."""


class Probes:
    """The answers of both probes in order, repetitions left out, and the longest time one took, in seconds."""

    def __init__(self, url: str, pid: int) -> None:
        self.live: list[Answer] = []
        self.ready: list[Answer] = []
        self.slowest_s = 0.0
        self.processes: set[int] = set()
        """Every process below servekit that was seen."""
        self._address = url.removeprefix("http://")
        self._pid = pid
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=("/livez", self.live), daemon=True),
            threading.Thread(target=self._ask, args=("/readyz", self.ready), daemon=True),
            threading.Thread(target=self._look, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S)

    def _ask(self, path: str, answers: list[Answer]) -> None:
        while not self._over.wait(_INTERVAL_S):
            connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_S)
            began_s = time.monotonic()
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                text = response.read().decode()
            except (OSError, http.client.HTTPException):
                continue
            finally:
                connection.close()
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            answer = (text.replace(":", " ").split()[0], response.status)
            if not answers or answers[-1] != answer:
                answers.append(answer)

    def _look(self) -> None:
        while not self._over.wait(_PROCESSES_INTERVAL_S):
            self.processes.update(descendants(self._pid))
