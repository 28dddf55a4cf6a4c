"""One load on several servers in turns, and what came of it: servekit, the same without its gate, vLLM alone."""

import itertools
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench, Load
from benchmarks.gpu.endpoint import Endpoint
from benchmarks.gpu.setting import Setting

BYPASS = "x-bare=1"
"""The header with which a switchable gate is passed by: benchmarks/inside/guard_switch.py."""


@dataclass(frozen=True)
class Side:
    """Where a load goes: a server, and headers that say how it is to be treated there."""

    name: str
    endpoint: Endpoint
    headers: tuple[str, ...] = ()


@dataclass
class Comparison:
    """Loads on all sides, turn and turn about. `rounds` holds what each gave, by load and side."""

    run: Setting
    bench: Bench
    sides: Sequence[Side]
    tokenizer: Path
    rounds: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    _took_s: dict[str, float] = field(default_factory=dict)

    def measure(self, loads: Sequence[Load], *, after_s: float) -> None:
        """Go through the loads again and again until the time is over; `after_s` seconds are left for what follows."""
        for number in range(self.run.options.rounds):
            self.rounds.append({})
            for place, load in enumerate(loads):
                took_s = self._took_s.get(load.name, len(self.sides) * load.about_s)
                if number < load.most_rounds and took_s + after_s < self.run.left_s():
                    self._turn(load, number, place)
            if not self.rounds[-1]:
                self.rounds.pop()
                break
        names = [side.name for side in self.sides]
        self.run.note("compared", [summarise(load, names, self.rounds) for load in loads])

    def _turn(self, load: Load, number: int, place: int) -> None:
        began_s = time.monotonic()
        first = (number + place) % len(self.sides)
        results = self.rounds[-1].setdefault(load.name, {})
        for side in (*self.sides[first:], *self.sides[:first]):
            # A server gets each prompt once: of one it has in its cache it would read nothing again.
            seed = 1000 * number + 100 * place + (50 if side.headers else 0)
            results[side.name] = self.bench.run(
                load, side.endpoint.url, self.tokenizer, seed=seed, key=self.run.key(), headers=side.headers
            )
        self._took_s[load.name] = time.monotonic() - began_s
        brief = {name: without_lists(result) for name, result in results.items()}
        self.run.record["rounds"] = [without_lists(each) for each in self.rounds]
        self.run.note("last_load", {"round": number, "load": load.name} | brief)


def without_lists(result: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the single times, of which there are thousands."""
    return {
        name: without_lists(value) if isinstance(value, Mapping) else value
        for name, value in result.items()
        if name != "ttfts_ms"
    }


def summarise(load: Load, sides: Sequence[str], rounds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of one load over all rounds, each side beside the last, which is vLLM alone.

    Throughput is all tokens over all seconds. The time to the first token is the median over all requests of all rounds
    but those that begin a round together (Load.burst). `by_round` shows how much a single round says.
    """
    measured = [each[load.name] for each in rounds if load.name in each]
    row: dict[str, Any] = {"load": load.name, "streams": load.streams, "images": load.images, "rounds": len(measured)}
    if not measured or any("output_throughput" not in each[name] for each in measured for name in sides):
        return row | {"failure": [without_lists(each) for each in measured] or "no time was left for it"}
    for name in sides:
        row[name] = _figures([each[name] for each in measured])
    alone = sides[-1]
    for name in sides[:-1]:
        row[f"{name}_over_{alone}"] = _over(row[name], row[alone]) | {
            "by_round": [_over(_figures([each[name]]), _figures([each[alone]])) for each in measured]
        }
    return row


def _figures(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ttfts_ms = list(itertools.chain.from_iterable(each["ttfts_ms"] for each in results))
    tokens, seconds = (sum(each[name] for each in results) for name in ("total_output_tokens", "duration"))
    return {
        "output_tokens_per_s": round(tokens / seconds, 1),
        "median_ttft_ms": round(statistics.median(ttfts_ms), 2) if ttfts_ms else None,
        "requests": len(ttfts_ms),
        "median_itl_ms": round(statistics.median(each["median_itl_ms"] for each in results), 3),
        "failed": sum(each["failed"] for each in results),
    }


def _over(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    added: dict[str, float | None] = {
        f"{name}_added_ms": None
        if one[f"median_{name}_ms"] is None or other[f"median_{name}_ms"] is None
        else round(one[f"median_{name}_ms"] - other[f"median_{name}_ms"], 3)
        for name in ("ttft", "itl")
    }
    return {"throughput": round(one["output_tokens_per_s"] / other["output_tokens_per_s"], 4)} | added
