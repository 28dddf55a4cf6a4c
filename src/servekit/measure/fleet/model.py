"""A replica as a server that all its running requests share, and how many of them a rate needs.

With n requests running, a token of each takes `step_s + n * per_request_s`: a step of the engine has a fixed cost and
one for each request in it, which measured records of different loads show. A prompt takes `prompt_s` a token. By
Little's law the requests that run on a replica at a rate r are
`n = r * (output * (step_s + n * per_request_s) + prompt * prompt_s)`, solved for n. The limits are the batch
(max-num-seqs) and the KV cache (a request keeps prompt and output).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Final

from servekit.measure.record import Record

BUSY: Final = 0.8
"""The share of a replica's highest rate that a plan uses: above it, queues grow with every burst."""
_SATURATED: Final = 0.9
"""From this share of the rate without any limit on, more running requests would hardly help: the GPU is the limit."""


@dataclass(frozen=True)
class Work:
    """Requests: a rate in 1/s, and the tokens of one."""

    rate: float
    prompt: int
    output: int


@dataclass(frozen=True)
class Speeds:
    """How fast a replica is, in seconds, and up to how many running requests that was measured."""

    step_s: float
    per_request_s: float
    prompt_s: float
    measured_running: float

    def request_s(self, work: Work, running: float) -> float:
        """Return how long a request takes beside so many that run."""
        return work.output * (self.step_s + running * self.per_request_s) + work.prompt * self.prompt_s

    def running(self, work: Work, rate: float) -> float:
        """Return how many requests run on a replica at this rate; infinite where it cannot keep up."""
        rest = 1 - rate * work.output * self.per_request_s
        return rate * self.request_s(work, 0) / rest if rest > 0 else math.inf


@dataclass(frozen=True)
class FleetPlan:
    """What a number of replicas does with the work. Times in seconds, rates in requests per second."""

    replicas: int
    needed: int
    """The fewest replicas that stay below BUSY of their highest rate."""
    bottleneck: str
    highest_rate: float
    """Of one replica."""
    running: float
    """Requests on each replica."""
    request_s: float
    token_s: float
    busy: float
    """Share of the highest rate."""
    busy_without_one: float
    """The same while one replica is away."""
    beyond_measured: bool
    """Whether more requests run, here or at BUSY, than in any record: the line is drawn further than measured."""


def fit_speeds(records: Sequence[Record]) -> Speeds:
    """Fit the line through records of different loads of one configuration.

    Raises ValueError with what is missing: two loads with different numbers of running requests.
    """
    points: list[tuple[float, float]] = []
    prompts: list[tuple[float, int]] = []
    for record in records:
        engine, work = record.engine, record.run.work
        token, prefill = engine.latency.get("time_per_output_token"), engine.latency.get("prefill")
        if engine.running and token and prefill and work and work.requests:
            points.append((engine.running.mean, token.mean_s))
            prompts.append((prefill.mean_s * prefill.count, work.prompt_tokens))
    if len({round(running) for running, _ in points}) < 2:  # noqa: PLR2004 # a line needs two points
        got = ", ".join(f"{running:.0f}" for running, _ in points) or "none"
        raise ValueError(f"needs records of at least two loads with different numbers of running requests (got {got})")
    slope, intercept = linear_regression(*zip(*points, strict=True))
    prompt_s = sum(seconds for seconds, _ in prompts) / max(1, sum(tokens for _, tokens in prompts))
    return Speeds(max(intercept, 0.0), max(slope, 0.0), prompt_s, max(running for running, _ in points))


def most_running(work: Work, max_running: int, pool_tokens: int | None) -> tuple[str, float]:
    """Return what limits the requests that run on a replica at once, and to how many."""
    limits = {"the batch (max-num-seqs)": float(max_running)}
    if pool_tokens is not None:
        limits["the KV cache"] = pool_tokens / (work.prompt + work.output)
    return min(limits.items(), key=lambda each: each[1])


def plan_fleet(
    work: Work, speeds: Speeds, *, max_running: int, pool_tokens: int | None = None, replicas: int | None = None
) -> FleetPlan:
    """Return the plan for this many replicas, or for as many as are needed.

    pool_tokens: of one replica's KV cache; None: unknown, and not a limit. Raises ValueError for a request that no
    replica can hold.
    """
    limit, most = most_running(work, max_running, pool_tokens)
    if most < 1:
        raise ValueError(f"a request of {work.prompt + work.output} tokens does not fit a KV cache of {pool_tokens}")
    highest = most / speeds.request_s(work, most)
    if highest * work.output * speeds.per_request_s > _SATURATED:
        limit = "the GPU's speed"
    needed = max(1, math.ceil(work.rate / (BUSY * highest)))
    count = replicas or needed
    running = speeds.running(work, work.rate / count)
    return FleetPlan(
        replicas=count,
        needed=needed,
        bottleneck=limit,
        highest_rate=highest,
        running=running,
        request_s=speeds.request_s(work, running),
        token_s=speeds.step_s + running * speeds.per_request_s,
        busy=work.rate / (count * highest),
        busy_without_one=work.rate / ((count - 1) * highest) if count > 1 else math.inf,
        beyond_measured=max(running, speeds.running(work, BUSY * highest)) > speeds.measured_running,
    )
