"""Query the probes at a steady pace from a separate process, so that the load generator's work does not delay them."""

import http.client
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from servekit.measure.statistics import quantile

PATHS = ("/livez", "/readyz")
LATENESS = "the prober's own lateness"
"""How much later than asked for its process was woken: what the machine's load alone does to a clock."""
_SLOW_S = 0.1
_TIMEOUT_S = 10


@dataclass
class Answers:
    """The answers of one probe: the seconds of each, and every answer other than 200 with its time."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    """The moments of answers that took longer than 100 ms."""

    def quantile_ms(self, share: float) -> float:
        """Return this quantile of the answer times, in milliseconds."""
        return 1000 * quantile(self.seconds, share)


class Prober:
    """A process that probes until it is stopped; an answer other than 200 is a failure while the endpoint is ready."""

    def __init__(self, url: str, interval_s: float = 0.2) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_ask, args=(url.removeprefix("http://"), interval_s, theirs))
        self._process.start()
        self._ours.recv()

    def stop(self) -> dict[str, Answers]:
        """End the process; return the answers by path."""
        self._ours.send("stop")
        answers: dict[str, Answers] = self._ours.recv()
        self._process.join()
        return answers


def _ask(address: str, interval_s: float, control: Connection) -> None:
    answers = {name: Answers() for name in (*PATHS, LATENESS)}
    control.send("started")
    asleep_s = time.perf_counter()
    while not control.poll(interval_s):
        answers[LATENESS].seconds.append(time.perf_counter() - asleep_s - interval_s)
        for path in PATHS:
            _ask_once(address, path, answers[path])
        asleep_s = time.perf_counter()
    control.send(answers)


def _ask_once(address: str, path: str, answers: Answers) -> None:
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    began_s = time.perf_counter()
    try:
        connection.request("GET", path)
        status = str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        status = repr(error)
    finally:
        connection.close()
    answers.seconds.append(time.perf_counter() - began_s)
    if answers.seconds[-1] > _SLOW_S:
        answers.slow.append(f"{time.strftime('%H:%M:%S')} {1000 * answers.seconds[-1]:.0f} ms")
    if status != "200":
        answers.wrong.append(f"{time.strftime('%H:%M:%S')} {status}")


def latency_lines(answers: dict[str, Answers]) -> Sequence[str]:
    """Return a line for each probe."""
    return [
        f"{path}: {len(seen.seconds)} asked, {len(seen.wrong)} wrong, p50 {seen.quantile_ms(0.5):.1f} ms, "
        f"p99 {seen.quantile_ms(0.99):.1f} ms, max {seen.quantile_ms(1):.1f} ms, {len(seen.slow)} over 100 ms"
        for path, seen in answers.items()
    ]
