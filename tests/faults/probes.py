"""The answers of /livez and /readyz over time, each polled without a pause by its own program."""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.harness.processes import descendants

_ASKER = Path(__file__).parent / "asker.py"
_PROCESSES_INTERVAL_S = 0.25
_TIMEOUT_S = 15

Answer = tuple[str, int]
"""The state that a probe's text names, and its HTTP status."""


@dataclass(frozen=True)
class Question:
    """How long one request to a probe took."""

    seconds: float = 0.0
    """As the asker measured it."""
    served_s: float = 0.0
    """From servekit's accept of the connection to its answer, as servekit measured it."""
    waited_s: float = 0.0
    """The part of `seconds` that the asker itself waited for a core."""


class Probes:
    """The answers of both probes in order, without repetitions, and the slowest request."""

    def __init__(self) -> None:
        self.live: list[Answer] = []
        self.ready: list[Answer] = []
        self.slowest = Question()
        self.processes: set[int] = set()
        """Every process below servekit that any scan has found."""
        self._over = threading.Event()
        self._askers: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []

    def begin(self, url: str, pid: int) -> None:
        """Start to poll the server at `url`, and to scan the processes below `pid`."""
        host, _, port = url.removeprefix("http://").partition(":")
        self._askers = [_start(host, port, path) for path in ("/livez", "/readyz")]
        self._threads = [
            threading.Thread(target=self._note, args=(self._askers[0], self.live), daemon=True),
            threading.Thread(target=self._note, args=(self._askers[1], self.ready), daemon=True),
            threading.Thread(target=self._look, args=(pid,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._over.set()
        for asker in self._askers:
            assert asker.stdin is not None
            asker.stdin.close()
            asker.wait(_TIMEOUT_S)
        for thread in self._threads:
            thread.join(_TIMEOUT_S)

    def _note(self, asker: "subprocess.Popen[str]", answers: list[Answer]) -> None:
        assert asker.stdout is not None
        with asker.stdout:
            for line in asker.stdout:
                answer = json.loads(line)
                if "state" in answer:
                    answers.append((answer["state"], answer["status"]))
                elif answer["seconds"] > self.slowest.seconds:
                    self.slowest = Question(**answer)

    def _look(self, pid: int) -> None:
        while not self._over.wait(_PROCESSES_INTERVAL_S):
            self.processes.update(descendants(pid))


def _start(host: str, port: str, path: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-I", "-S", str(_ASKER), host, port, path]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
