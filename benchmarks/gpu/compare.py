"""The same load on servekit and on vLLM alone: in turns, and on both in the same seconds."""

import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from benchmarks.gpu.bench import Bench, Load
from benchmarks.gpu.endpoint import Endpoint, get
from benchmarks.gpu.load import TICK_S
from benchmarks.gpu.setting import Setting
from benchmarks.processes import cpu_seconds

AFTER_S = 15
"""What ends a stage once its loads are over."""
SIDES = ("servekit", "bare")
STRETCH_TICKS = round(0.5 / TICK_S)
"""Ticks in one of the stretches by whose differences a throughput's error is told."""
HELD_PATH = "/guard-times"
"""Where benchmarks/inside/guard_timed.py tells how long the guard held requests: its `PATH`, out of reach from here."""

Measured = Mapping[str, Mapping[str, Any]]
"""What one load gave on each side."""


def in_turns(run: Setting, bench: Bench, servers: Mapping[str, Endpoint], loads: Sequence[Load]) -> None:
    """Put each load on one server and then on the other, a few rounds; the order changes all the time."""
    measured: dict[str, list[Measured]] = {load.name: [] for load in loads}
    rows = {load.name: in_turns_row(load, []) for load in loads}
    for number in range(run.options.rounds):
        for place, load in enumerate(loads):
            if load.about_s + AFTER_S > run.left_s():
                continue
            sides = SIDES if (number + place) % 2 == 0 else SIDES[::-1]
            seed = 1000 * number + 100 * place
            result = {side: put(run, bench, servers[side], load, seed) for side in sides}
            measured[load.name].append(result)
            rows[load.name] = in_turns_row(load, measured[load.name])
            run.record["in_turns"] = list(rows.values())
            run.note("last_load", {"load": load.name} | without_singles(result))
    run.note("in_turns", list(rows.values()))


def at_once(run: Setting, benches: Sequence[Bench], servers: Mapping[str, Endpoint], loads: Sequence[Load]) -> None:
    """Put half of each load on either server in the same seconds.

    Whatever the host and the GPU do meanwhile meets both alike: what differs is what the servers differ by.
    """
    rows: list[dict[str, Any]] = []
    run.record["at_once"] = rows
    for place, load in enumerate(loads):
        if load.about_s + AFTER_S > run.left_s():
            rows.append({"load": load.name, "failure": "no time was left for it"})
            continue
        with ThreadPoolExecutor(len(SIDES)) as pool:
            halves = {
                side: pool.submit(put, run, bench, servers[side], load, 10_000 + 100 * place)
                for side, bench in zip(SIDES, benches, strict=True)
            }
            result = {side: half.result() for side, half in halves.items()}
        rows.append(at_once_row(load, result))
        run.note("last_load", rows[-1])
    run.note("at_once", rows)


def put(run: Setting, bench: Bench, server: Endpoint, load: Load, seed: int) -> dict[str, Any]:
    """Put one load on one server; add what processor time it took and how long the guard held the requests."""
    get(f"{server.url}{HELD_PATH}")  # forget those before
    before_s = _cpu_s(server)
    result = bench.run(load, server.url, run.options.w4a16, seed=seed, key=run.key())
    after_s = _cpu_s(server)
    code, held = get(f"{server.url}{HELD_PATH}")
    used = {name: round(after_s[name] - before_s[name], 2) for name in after_s}
    return result | used | ({"held": json.loads(held)} if code == HTTPStatus.OK else {})


def _cpu_s(server: Endpoint) -> dict[str, float]:
    """Return the processor seconds of EngineCore and of everything else of a server, servekit included."""
    processes = server.processes() | {server.process.pid: ""}
    core = [pid for pid, words in processes.items() if "EngineCore" in words]
    return {"server_cpu_s": cpu_seconds(pid for pid in processes if pid not in core), "core_cpu_s": cpu_seconds(core)}


def in_turns_row(load: Load, rounds: Sequence[Measured]) -> dict[str, Any]:
    """Sum the rounds of one load up: both sides, and servekit over vLLM alone.

    Throughput is all tokens over all seconds, its error that of the mean of the rounds' ratios. The time to the first
    token is the median over all requests but those that begin a round together, which wait for one another.
    """
    row: dict[str, Any] = {"load": load.name, "streams": load.streams, "images": load.images, "rounds": len(rounds)}
    if not rounds or any("single" not in each[side] for each in rounds for side in SIDES):
        return row | {"failure": [without_singles(each) for each in rounds] or "no time was left for it"}
    one, other = ([each[side]["output_throughput"] for each in rounds] for side in SIDES)
    ratios = [mine / its for mine, its in zip(one, other, strict=True)]
    for side in SIDES:
        mine = [each[side] for each in rounds]
        tokens, seconds = (sum(each[name] for each in mine) for name in ("total_output_tokens", "duration"))
        ttfts_s = itertools.chain.from_iterable(each["single"]["ttfts_s"][load.streams :] for each in mine)
        row[side] = {"output_tokens_per_s": round(tokens / seconds, 1)} | _latencies(ttfts_s, mine)
    error = round(statistics.stdev(ratios) / math.sqrt(len(ratios)), 4) if len(ratios) > 1 else None
    over = _over(row) | {"throughput_error": error, "throughput_by_round": [round(ratio, 4) for ratio in ratios]}
    return row | {"over": over}


def at_once_row(load: Load, result: Measured) -> dict[str, Any]:
    """Compare the halves of one load in the seconds in which both have all their streams (`shared_span`).

    A load without such seconds, as a burst in which all requests begin together, is compared as a whole: `seconds` is
    None then.
    """
    row: dict[str, Any] = {"load": load.name, "streams": load.streams * len(SIDES), "images": load.images}
    if any("single" not in each for each in result.values()):
        return row | {"failure": without_singles(result)}
    singles = [result[side]["single"] for side in SIDES]
    begin_s, end_s = shared_span(singles, load.streams)
    shared = [_stretches(single["tokens"], begin_s, end_s) for single in singles]
    inside = [_ttfts_s(single, begin_s, end_s) for single in singles]
    steady = all(shared) and all(inside)
    row["seconds"] = round(end_s - begin_s, 2) if steady else None
    for side, stretches, ttfts_s, single in zip(SIDES, shared, inside, singles, strict=True):
        whole = result[side]["output_throughput"]
        rate = sum(stretches) / (len(stretches) * STRETCH_TICKS * TICK_S) if steady else whole
        row[side] = {
            "output_tokens_per_s": round(rate, 1),
            "whole_output_tokens_per_s": round(whole, 1),
            **_latencies(ttfts_s if steady else single["ttfts_s"], [result[side]]),
        }
    one, other = (row[side]["whole_output_tokens_per_s"] for side in SIDES)
    over = {"throughput_error": _ratio_error(*shared), "whole_throughput": round(one / other, 4)}
    return row | {"over": _over(row) | over}


def shared_span(singles: Sequence[Mapping[str, Any]], streams: int) -> tuple[float, float]:
    """Return from when until when both sides have all their streams, in seconds of the monotonic clock.

    It begins when the last side has sent its first request after those that begin together, and ends when the first
    side sends its last one.
    """
    begin_s = max(single["starts_s"][min(streams, len(single["starts_s"]) - 1)] for single in singles)
    end_s = min(single["starts_s"][-1] for single in singles)
    return begin_s, max(begin_s, end_s)


def _ttfts_s(single: Mapping[str, Any], begin_s: float, end_s: float) -> list[float]:
    begun = zip(single["starts_s"], single["ttfts_s"], strict=True)
    return [ttft_s for start_s, ttft_s in begun if begin_s <= start_s <= end_s]


def _stretches(tokens: Sequence[tuple[int, float]], begin_s: float, end_s: float) -> list[float]:
    """Return the tokens of each whole stretch between two seconds."""
    first = int(begin_s / TICK_S) + 1
    count = max(0, int(end_s / TICK_S) - first) // STRETCH_TICKS
    sums: defaultdict[int, float] = defaultdict(float)
    for tick, number in tokens:
        sums[(tick - first) // STRETCH_TICKS] += number
    return [sums[place] for place in range(count)]


def _ratio_error(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the standard error of the ratio of two sums, from the differences of their parts."""
    if len(one) < 3:  # noqa: PLR2004 - of two no spread can be told
        return None
    mean = statistics.mean(other)
    return round(statistics.stdev(a - b for a, b in zip(one, other, strict=True)) / math.sqrt(len(one)) / mean, 4)


def _latencies(ttfts_s: Iterable[float], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ttfts_ms = [1000 * ttft_s for ttft_s in ttfts_s]
    requests = max(1, sum(each["completed"] for each in results))
    return {
        "median_ttft_ms": round(statistics.median(ttfts_ms), 2) if ttfts_ms else None,
        "ttft_error_ms": round(_median_error(ttfts_ms), 2) if len(ttfts_ms) > 1 else None,
        "requests_counted": len(ttfts_ms),
        "median_itl_ms": round(statistics.median(each["median_itl_ms"] for each in results), 3),
        "failed": sum(each["failed"] for each in results),
        "server_cpu_ms_per_request": round(1000 * sum(each["server_cpu_s"] for each in results) / requests, 2),
        "core_cpu_ms_per_request": round(1000 * sum(each["core_cpu_s"] for each in results) / requests, 2),
        **({"held": [each["held"] for each in results]} if "held" in results[0] else {}),
    }


def _median_error(values: Sequence[float]) -> float:
    """Return the standard error of the median, from the middle half of the values and as if they were independent."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.253 * (high - low) / 1.349 / math.sqrt(len(values))


def _over(row: Mapping[str, Any]) -> dict[str, float | None]:
    one, other = (row[side] for side in SIDES)
    rates = one["output_tokens_per_s"], other["output_tokens_per_s"]
    over: dict[str, float | None] = {"throughput": round(rates[0] / rates[1], 4) if all(rates) else None}
    for name in ("ttft", "itl"):
        mine, its = one[f"median_{name}_ms"], other[f"median_{name}_ms"]
        over[f"{name}_added_ms"] = None if mine is None or its is None else round(mine - its, 3)
    errors = one["ttft_error_ms"], other["ttft_error_ms"]
    over["ttft_error_ms"] = None if None in errors else round(math.hypot(*errors), 2)
    return over


def without_singles(result: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what became of each request: there are thousands."""
    return {
        name: without_singles(value) if isinstance(value, Mapping) else value
        for name, value in result.items()
        if name != "single"
    }
