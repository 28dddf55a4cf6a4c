"""The same load on two servers, or on one with its gate and past it: in turns, and both in the same seconds."""

import itertools
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.bench import Bench, Load
from benchmarks.gpu.endpoint import Endpoint
from benchmarks.gpu.load import TICK_S
from benchmarks.gpu.setting import Setting
from benchmarks.processes import cpu_seconds

AFTER_S = 15
"""What ends a stage once its loads are over."""
BYPASS = "x-bare=1"
"""The header with which a switchable gate is passed by: benchmarks/inside/guard_switch.py."""


@dataclass(frozen=True)
class Side:
    """Where a load goes: a server, and headers that say how it is to be treated there."""

    name: str
    endpoint: Endpoint
    headers: tuple[str, ...] = ()

    def load(self, run: Setting, bench: Bench, load: Load, seed: int) -> dict[str, Any]:
        """Put the load on this side; add the processor time its server used meanwhile, EngineCore apart."""
        # A server gets each prompt once: of one it has in its cache it would read nothing again.
        seed += 50 if self.headers else 0
        before_s = self._cpu_s()
        result = bench.run(load, self.endpoint.url, run.options.w4a16, seed=seed, key=run.key(), headers=self.headers)
        after_s = self._cpu_s()
        return result | {name: round(after_s[name] - before_s[name], 2) for name in after_s}

    def _cpu_s(self) -> dict[str, float]:
        processes = self.endpoint.processes() | {self.endpoint.process.pid: ""}
        core = [pid for pid, words in processes.items() if "EngineCore" in words]
        rest = [pid for pid in processes if pid not in core]
        return {"server_cpu_s": cpu_seconds(rest), "core_cpu_s": cpu_seconds(core)}


def in_turns(run: Setting, bench: Bench, sides: Sequence[Side], loads: Sequence[Load]) -> None:
    """Go through the loads again and again until the time is over.

    Each side is alone while it is loaded. The order changes from load to load and from round to round.
    """
    rounds: list[dict[str, dict[str, Any]]] = []
    took_s: dict[str, float] = {load.name: load.about_s for load in loads}
    for number in range(run.options.rounds):
        done: dict[str, dict[str, Any]] = {}
        for place, load in enumerate(loads):
            if took_s[load.name] + AFTER_S > run.left_s():
                continue
            began_s = time.monotonic()
            first = (number + place) % len(sides)
            done[load.name] = {
                side.name: side.load(run, bench, load, 1000 * number + 100 * place)
                for side in (*sides[first:], *sides[:first])
            }
            took_s[load.name] = time.monotonic() - began_s
            run.record["rounds"] = [without_singles(each) for each in (*rounds, done)]
            run.note("last_load", {"round": number, "load": load.name} | without_singles(done[load.name]))
        if not done:
            break
        rounds.append(done)
    run.note("in_turns", [summarise(load, [side.name for side in sides], rounds) for load in loads])


def at_once(run: Setting, benches: Sequence[Bench], pairs: Sequence[tuple[Side, Side]], loads: Sequence[Load]) -> None:
    """Put half of each load on either side of a pair in the same seconds.

    Whatever the host and the GPU do meanwhile meets both sides: what differs is what the sides differ by. Counted are
    only the seconds in which both have all their streams (`shared_span`).
    """
    rows: list[dict[str, Any]] = run.record.setdefault("at_once", [])
    for place, load in enumerate(loads):
        for one, other in pairs:
            if load.about_s + AFTER_S > run.left_s():
                continue
            seed = 10_000 + 100 * place
            with ThreadPoolExecutor(2) as pool:
                halves = [
                    pool.submit(side.load, run, bench, load, seed)
                    for side, bench in zip((one, other), benches, strict=True)
                ]
                results = {side.name: half.result() for side, half in zip((one, other), halves, strict=True)}
            if one.endpoint is other.endpoint:  # the processor time of one process cannot be told apart
                results = {name: _without(result, "server_cpu_s", "core_cpu_s") for name, result in results.items()}
            rows.append(side_by_side(load, results))
            run.record["at_once"] = rows
            run.note("last_load", rows[-1])


def side_by_side(load: Load, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of two halves of one load in the seconds they share, and the first over the second."""
    row: dict[str, Any] = {"load": load.name, "streams": sum(load.streams for _ in results), "images": load.images}
    if any("single" not in result for result in results.values()):
        return row | {"failure": without_singles(results)}
    begin_s, end_s = shared_span([result["single"] for result in results.values()], load.streams)
    row["seconds"] = round(end_s - begin_s, 2)
    for name, result in results.items():
        row[name] = _within(result["single"], begin_s, end_s) | {
            "whole_output_tokens_per_s": round(result["output_throughput"], 1),
            "failed": result["failed"],
            "median_itl_ms": round(result["median_itl_ms"], 3),
            **_cpu_ms([result]),
        }
    one, other = (row[name]["whole_output_tokens_per_s"] for name in results)
    return row | {"over": _over(*(row[name] for name in results)) | {"whole_throughput": round(one / other, 4)}}


def shared_span(singles: Sequence[Mapping[str, Any]], streams: int) -> tuple[float, float]:
    """Return from when until when all sides have all their streams, in seconds of the monotonic clock.

    It begins when the last side has sent its first request after those that begin together, and ends when the first
    side sends its last one.
    """
    begin_s = max(single["starts_s"][min(streams, len(single["starts_s"]) - 1)] for single in singles)
    end_s = min(single["starts_s"][-1] for single in singles)
    return begin_s, max(begin_s, end_s)


def _within(single: Mapping[str, Any], begin_s: float, end_s: float) -> dict[str, Any]:
    begun = zip(single["starts_s"], single["ttfts_s"], strict=True)
    ttfts_ms = [1000 * ttft_s for start_s, ttft_s in begun if begin_s <= start_s <= end_s]
    first, last = int(begin_s / TICK_S) + 1, int(end_s / TICK_S)
    tokens = sum(count for tick, count in single["tokens"] if first <= tick < last)
    return {
        "output_tokens_per_s": round(tokens / ((last - first) * TICK_S), 1) if last > first else None,
        "median_ttft_ms": round(statistics.median(ttfts_ms), 2) if ttfts_ms else None,
        "ttft_error_ms": round(_median_error(ttfts_ms), 2) if len(ttfts_ms) > 1 else None,
        "requests": len(ttfts_ms),
    }


def _median_error(values: Sequence[float]) -> float:
    """Return the standard error of the median, from the middle half of the values and as if they were independent."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.253 * (high - low) / 1.349 / math.sqrt(len(values))


def without_singles(result: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what became of each request: there are thousands."""
    kept = _without(result, "single")
    return {name: without_singles(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _without(result: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in names}


def summarise(load: Load, sides: Sequence[str], rounds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of one load over all rounds, each side beside the last, which is vLLM alone.

    Throughput is all tokens over all seconds. The time to the first token is the median over all requests of all rounds
    but those that begin a round together. `by_round` shows how much a single round says.
    """
    measured = [each[load.name] for each in rounds if load.name in each]
    row: dict[str, Any] = {"load": load.name, "streams": load.streams, "images": load.images, "rounds": len(measured)}
    if not measured or any("single" not in each[name] for each in measured for name in sides):
        return row | {"failure": [without_singles(each) for each in measured] or "no time was left for it"}
    for name in sides:
        row[name] = _figures(load, [each[name] for each in measured])
    alone = sides[-1]
    for name in sides[:-1]:
        row[f"{name}_over_{alone}"] = _over(row[name], row[alone]) | {
            "by_round": [_over(_figures(load, [each[name]]), _figures(load, [each[alone]])) for each in measured]
        }
    return row


def _figures(load: Load, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    begun = itertools.chain.from_iterable(each["single"]["ttfts_s"][load.streams :] for each in results)
    ttfts_ms = [1000 * ttft_s for ttft_s in begun]
    tokens, seconds = (sum(each[name] for each in results) for name in ("total_output_tokens", "duration"))
    return {
        "output_tokens_per_s": round(tokens / seconds, 1),
        "median_ttft_ms": round(statistics.median(ttfts_ms), 2) if ttfts_ms else None,
        "requests": len(ttfts_ms),
        "median_itl_ms": round(statistics.median(each["median_itl_ms"] for each in results), 3),
        "failed": sum(each["failed"] for each in results),
        **_cpu_ms(results),
    }


def _cpu_ms(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the processor time a request took in the server and in EngineCore, where it was told."""
    requests = max(1, sum(each["completed"] for each in results))
    return {
        f"{name}_cpu_ms_per_request": round(1000 * sum(each[f"{name}_cpu_s"] for each in results) / requests, 3)
        for name in ("server", "core")
        if all(f"{name}_cpu_s" in each for each in results)
    }


def _over(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    def added_ms(name: str) -> float | None:
        mine, its = one[name], other[name]
        return None if mine is None or its is None else round(mine - its, 3)

    mine, its = one["output_tokens_per_s"], other["output_tokens_per_s"]
    return {
        "throughput": round(mine / its, 4) if mine and its else None,
        "ttft_added_ms": added_ms("median_ttft_ms"),
        "itl_added_ms": added_ms("median_itl_ms"),
    }
