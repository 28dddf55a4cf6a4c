"""Throughput of the endpoint started by servekit against the same engine started by hand, round by round.

The benchmark starts both, one after the other. From then on, all processes of one of the two are always stopped
(SIGSTOP). So they never share the cores, and because they alternate every few seconds, other work on the machine
affects both alike. A second figure leaves out the pairs of rounds in which other programs used more than a twentieth
of the cores. The result also has CPU times: the engine's per token, and that of servekit and its keeper meanwhile.
"""

import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.endpoint import served_by_hand, served_by_servekit
from benchmarks.load import run_round
from benchmarks.programs import spread, working_folder
from servekit.measure.statistics import quartiles, ratios_of_pairs
from tests.harness.processes import busy_seconds, command_line, cpu_seconds, descendants
from tests.harness.server import Server

NAME = "throughput"
ROUNDS = 40
STREAMS, TOKENS = 32, 64
QUIET_SHARE = 0.05
WANTED = 0.98


@dataclass
class Side:
    """One of the two endpoints, and what was measured on it; times in seconds."""

    endpoint: Server
    own: list[int] = field(default_factory=list)
    """servekit and its keeper; nothing for an engine started by hand."""
    engine: list[int] = field(default_factory=list)
    tokens: int = 0
    rates: list[float] = field(default_factory=list)
    foreign_shares: list[float] = field(default_factory=list)
    """Share of the cores that other programs used, for each round."""
    wall_s: float = 0.0
    own_cpu_s: float = 0.0
    engine_cpu_s: float = 0.0

    def __post_init__(self) -> None:
        """Separate servekit's processes from the engine's."""
        below = descendants(self.endpoint.pid)
        keeper = [pid for pid in below if "keeper.py" in command_line(pid)]
        self.own = [self.endpoint.pid, *keeper] if keeper else []
        self.engine = [pid for pid in (self.endpoint.pid, *below) if pid not in self.own]

    def warm_up(self) -> None:
        """Run one round that does not count."""
        run_round(self.endpoint, streams=STREAMS, tokens=TOKENS)

    def measure(self) -> None:
        """Run one round and add it to the figures."""
        began = time.perf_counter()
        before = (cpu_seconds(self.own), cpu_seconds(self.engine), time.process_time(), busy_seconds())
        done = run_round(self.endpoint, streams=STREAMS, tokens=TOKENS)
        after = (cpu_seconds(self.own), cpu_seconds(self.engine), time.process_time(), busy_seconds())
        wall_s = time.perf_counter() - began
        own_s, engine_s, load_s, busy_s = (late - early for early, late in zip(before, after, strict=True))
        self.wall_s += wall_s
        self.own_cpu_s += own_s
        self.engine_cpu_s += engine_s
        foreign_s = max(0.0, busy_s - own_s - engine_s - load_s)
        self.foreign_shares.append(round(foreign_s / wall_s / (os.cpu_count() or 1), 3))
        self.tokens += done.tokens
        self.rates.append(round(done.tokens_per_s, 1))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all processes for the duration of the block."""
        _signal([*self.own, *self.engine], signal.SIGSTOP)
        try:
            yield
        finally:
            _signal([*reversed(self.engine), *reversed(self.own)], signal.SIGCONT)


def run(rounds: int | None) -> dict[str, Any]:
    """Return tokens per second of each round, and CPU times, for both sides."""
    with working_folder() as folder, served_by_servekit(folder) as first, ExitStack() as stack:
        servekit = Side(first)
        servekit.warm_up()
        with servekit.paused():
            hand = Side(stack.enter_context(served_by_hand(folder)))
            hand.warm_up()
        for number in range(rounds or ROUNDS):
            turns = [(servekit, hand), (hand, servekit)]
            for active, other in turns if number % 2 else reversed(turns):
                with other.paused():
                    active.measure()
    return _compare(servekit, hand)


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    rows = [f"{'':<10}{'median':>9}{'least':>9}{'most':>9} tokens/s   engine's CPU per token   servekit's own CPU"]
    for name, side in result["sides"].items():
        rates = side["tokens_per_s"]
        own = f"{100 * side['servekit_cpu_share']:.2f} % of a core" if name == "servekit" else ""
        rows.append(f"{name:<10}{spread(rates, 0, '')}{'':>12}{side['engine_cpu_ms_per_token']:.3f} ms{'':>17}{own}")
    low, high = result["quartiles"]
    rows += [
        f"servekit / by hand (wanted: {result['wanted']}):",
        f"  {result['median_ratio']} the median of {result['rounds']} pairs of rounds, quartiles {low} and {high}",
        f"  {result['quiet_ratio']} the median of the {result['quiet_rounds']} pairs with little else on the machine",
        f"  {result['ratio']} all tokens over all seconds; {result['cpu_ratio']} by the engine's processor time",
    ]
    return rows


def _compare(servekit: Side, hand: Side) -> dict[str, Any]:
    pairs = ratios_of_pairs(servekit.rates, hand.rates)
    foreign = [max(both) for both in zip(servekit.foreign_shares, hand.foreign_shares, strict=True)]
    quiet = [pair for pair, share in zip(pairs, foreign, strict=True) if share <= QUIET_SHARE]
    middle_half = quartiles(pairs)
    return {
        "streams": STREAMS,
        "tokens_per_stream": TOKENS,
        "rounds": len(pairs),
        "sides": {
            name: {
                "tokens_per_s": side.rates,
                "foreign_shares": side.foreign_shares,
                "engine_cpu_ms_per_token": round(1000 * side.engine_cpu_s / side.tokens, 4),
                "servekit_cpu_share": round(side.own_cpu_s / side.wall_s, 5),
            }
            for name, side in (("servekit", servekit), ("by hand", hand))
        },
        "ratio": round(servekit.tokens / servekit.wall_s / (hand.tokens / hand.wall_s), 4),
        "median_ratio": round(middle_half.median, 4),
        "quartiles": [round(middle_half.low, 3), round(middle_half.high, 3)],
        "quiet_rounds": len(quiet),
        "quiet_ratio": round(statistics.median(quiet), 4) if quiet else None,
        "cpu_ratio": round(hand.engine_cpu_s / hand.tokens / (servekit.engine_cpu_s / servekit.tokens), 4),
        "wanted": WANTED,
    }


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
