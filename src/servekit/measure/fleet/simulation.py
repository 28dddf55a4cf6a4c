"""Replicas that share their speed among running requests, behind a router that takes turns, request by request."""

import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean, quantiles

from servekit.measure.fleet.model import Speeds, Work


@dataclass(frozen=True)
class Simulated:
    """What a simulation saw, without its first tenth. Seconds."""

    requests: int
    mean_request_s: float
    p95_request_s: float
    mean_wait_s: float
    """Before a request ran."""
    running: float
    """Mean requests on a replica."""


@dataclass
class _Replica:
    """Requests that run, by the tokens that each replica will have made of every running request when they end."""

    speeds: Speeds
    work: Work
    max_running: int
    now_s: float = 0.0
    made: float = 0.0
    """Tokens that a request which ran all the time would have."""
    ends: list[tuple[float, float, float]] = field(default_factory=list)
    waiting: deque[float] = field(default_factory=deque)
    area: float = 0.0

    def advance(self, until_s: float) -> Iterator[tuple[float, float, float]]:
        """Let time pass; yield arrival, start and end of each request that ends."""
        while self.ends:
            token_s = self.speeds.step_s + len(self.ends) * self.speeds.per_request_s
            end_s = self.now_s + (self.ends[0][0] - self.made) * token_s
            if end_s > until_s:
                break
            self._pass(end_s, token_s)
            self.made, arrived_s, began_s = heapq.heappop(self.ends)
            if self.waiting:
                self._begin(self.waiting.popleft())
            yield arrived_s, began_s, end_s
        token_s = self.speeds.step_s + len(self.ends) * self.speeds.per_request_s
        self._pass(until_s, token_s)

    def arrive(self) -> None:
        """Take a request now."""
        if len(self.ends) < self.max_running:
            self._begin(self.now_s)
        else:
            self.waiting.append(self.now_s)

    def _begin(self, arrived_s: float) -> None:
        # The prompt counts as the tokens that would take as long.
        prompt = self.work.prompt * self.speeds.prompt_s / max(self.speeds.step_s + self.speeds.per_request_s, 1e-12)
        heapq.heappush(self.ends, (self.made + self.work.output + prompt, arrived_s, self.now_s))

    def _pass(self, until_s: float, token_s: float) -> None:
        self.area += len(self.ends) * (until_s - self.now_s)
        if self.ends and token_s:
            self.made += (until_s - self.now_s) / token_s
        self.now_s = until_s


def simulate(
    work: Work, speeds: Speeds, *, replicas: int, max_running: int, requests: int = 20_000, seed: int = 1
) -> Simulated:
    """Send requests at random moments (a Poisson process) to the replicas by turns."""
    draw = random.Random(seed)  # noqa: S311 # no secret
    all_of_them = [_Replica(speeds, work, max_running) for _ in range(replicas)]
    ended: list[tuple[float, float, float]] = []
    now_s = 0.0
    for number in range(requests):
        now_s += draw.expovariate(work.rate)
        replica = all_of_them[number % replicas]
        ended += replica.advance(now_s)
        replica.arrive()
    running = fmean(each.area / each.now_s for each in all_of_them if each.now_s)
    for replica in all_of_them:
        ended += replica.advance(float("inf")) if replica.ends else ()
    kept = [each for each in ended if each[0] > now_s / 10]
    taken = [end_s - arrived_s for arrived_s, _, end_s in kept]
    return Simulated(
        requests=len(kept),
        mean_request_s=fmean(taken),
        p95_request_s=quantiles(taken, n=20)[-1],
        mean_wait_s=fmean(began_s - arrived_s for arrived_s, began_s, _ in kept),
        running=running,
    )
