"""The running project: its replicas, what the router knows about them, and what each has counted."""

import http.client
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from signal import Signals

from docker.errors import DockerException
from docker.models.containers import Container

from tests.container.stack import Stack

_COUNT = re.compile(
    r'^servekit_key_(?:requests_total|in_flight)\{key="(?!\(servekit\))[^"]*"(?:,outcome="(\w+)")?\} (\S+)$'
)
"""Not servekit's own requests."""
COMPOSE_S = 900
_STARTING, _SERVING = 20_480, 1_024
"""CPU shares: vLLM spins while it serves, and on two cores a replica that starts would hardly run."""
_IN_S = 600
"""Longest time for the start of a replica here."""


class Scene:
    """The replicas by their numbers, from 1 on."""

    def __init__(self, stack: Stack, replicas: int) -> None:
        self.stack = stack
        self.replicas = replicas
        self.shares: dict[int, tuple[int, str | None]] = {}
        """CPU shares of each replica's container."""

    def compose(self, *words: str) -> None:
        """Run Compose."""
        self.stack.compose(*words, within_s=COMPOSE_S)

    def replica(self, number: int) -> Container:
        """Return the container of a replica in its current state."""
        return self.stack.containers(f"servekit-{number}")[0]

    def signal(self, number: int, part: str, number_of: Signals) -> None:
        """Send a signal to the process of a replica whose command line has `part`; it has another user: needs root.

        What follows `--` is the command line of another process, which the keeper starts.
        """
        table = self.replica(number).top(ps_args="-eo pid,args")
        (pid,) = (int(pid) for pid, words in table["Processes"] if part in words.partition(" -- ")[0])
        os.kill(pid, number_of)

    def recover(self) -> None:
        """Start every replica that an event has left down."""
        for number in range(1, self.replicas + 1):
            self.replica(number).start()
        self.all_in()

    def favour_the_way(self) -> None:
        """Give router and gateway more of the processors than replicas that serve."""
        for service in ("router", "gateway"):
            self.stack.containers(service)[0].update(cpu_shares=_STARTING)

    def workers(self) -> dict[str, bool]:
        """Return each replica by its number, and whether the router has it in rotation."""
        router = self.stack.containers("router")[0]
        found = json.loads(_get(router, 8000, "/workers"))["workers"]
        return {each["url"].partition("servekit-")[2].partition(":")[0]: each["is_healthy"] for each in found}

    def counts(self, number: int) -> dict[str, int]:
        """Return the clients' requests of a replica by outcome since its start, and those in flight."""
        counts: dict[str, int] = {}
        for line in _get(self.replica(number), 9400, "/metrics").splitlines():
            if found := _COUNT.match(line):
                what = found[1] or "in flight"
                counts[what] = counts.get(what, 0) + int(float(found[2]))
        return counts

    def until(self, condition: Callable[[dict[str, bool]], bool], what: str, every_s: float) -> float:
        """Wait until the router's list is so; return the seconds."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < _IN_S:
            with suppress(DockerException, OSError, http.client.HTTPException, ValueError, IndexError, StopIteration):
                if condition(self.workers()):
                    return time.monotonic() - began_s
            time.sleep(every_s)
        raise TimeoutError(f"not within {_IN_S:g} s: {what}")

    def out(self, number: int) -> float:
        """Wait until a replica is out of rotation; return the seconds."""
        return self.until(lambda found: not found[str(number)], f"servekit-{number} out of rotation", 0.02)

    def all_in(self) -> float:
        """Wait until every replica is in rotation; return the seconds. One that is not gets most of the processors."""

        def everyone(found: dict[str, bool]) -> bool:
            for number in range(1, self.replicas + 1):
                shares = _SERVING if found.get(str(number)) else _STARTING
                if self.shares.get(number) != (shares, ident := self.replica(number).id):
                    self.replica(number).update(cpu_shares=shares)
                    self.shares[number] = (shares, ident)
            return list(found.values()) == [True] * self.replicas

        return self.until(everyone, "every replica in rotation", 0.5)


def _get(container: Container, port: int, path: str) -> str:
    networks = container.attrs["NetworkSettings"]["Networks"]
    address = next(each["IPAddress"] for each in networks.values())
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()
