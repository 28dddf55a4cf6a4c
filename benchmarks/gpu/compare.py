"""The same load on servekit and on vLLM alone, at the same time."""

import itertools
import json
import math
import statistics
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from benchmarks.gpu.bench import Bench, Load
from benchmarks.gpu.endpoint import Measured, Served
from benchmarks.gpu.load import BIN_S
from benchmarks.gpu.setting import Setting
from servekit.measure.statistics import median_error, pooled_deviation, standard_error
from tests.harness.http import get
from tests.harness.processes import cpu_seconds

AFTER_S = 15
"""What ends a stage once its loads are over."""
SIDES = ("servekit", "bare")
BUSY = ("server_cpu_s", "server_loop_s", "core_cpu_s", "core_loop_s")
"""Of which the record has the cores: CPU seconds a second. A loop that takes a whole core is what holds requests up."""
HELD_PATH = "/guard-times"
"""Where benchmarks/inside/guard_timed.py tells how long the guard held requests: its `PATH`, out of reach from here."""


def at_once(run: Setting, benches: Sequence[Bench], servers: Mapping[str, Measured], loads: Sequence[Load]) -> None:
    """Put every load on both servers at the same time, for as many rounds as the time allows.

    Disturbances of the host and the GPU then affect both alike, so only the servers make a difference. Both begin
    at the same moment, after their warm-ups: one second alone on the GPU would outweigh the difference that we look
    for. The load generators change sides from round to round.
    """
    rows: list[dict[str, Any]] = []
    run.record["at_once"] = rows
    for number, (place, load) in itertools.product(range(run.options.rounds), enumerate(loads)):
        if load.about_s + AFTER_S <= run.left_s():
            seed, together = 1000 * number + 100 * place, threading.Barrier(len(SIDES))
            with ThreadPoolExecutor(len(SIDES)) as pool:
                halves = {
                    side: pool.submit(put, run, bench, servers[side], load, seed, together)
                    for side, bench in zip(SIDES, benches[:: -1 if number % 2 else 1], strict=True)
                }
            rows.append(compared_row(load, {side: half.result() for side, half in halves.items()}))
            run.note("last_load", rows[-1])
        elif number == 0:
            rows.append(_named(load) | {"failure": "no time was left for it"})
    run.note("at_once", rows)


def in_turns(
    run: Setting, benches: Sequence[Bench], servers: Mapping[str, Measured], load: Load, rounds: int, name: str
) -> None:
    """Put a load on one server, then on the other, alternately: each has the GPU to itself; record it as `name`.

    Each request of a burst waits for those before it, in the server's one event loop and in EngineCore's queue: the
    median first token shows what a server adds to all of them together.
    """
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        if load.about_s + AFTER_S > run.left_s():
            break
        turns = list(zip(SIDES, benches, strict=True))[:: -1 if number % 2 else 1]
        result = {side: put(run, bench, servers[side], load, seed=50_000 + number) for side, bench in turns}
        row = _named(load)
        if not _answered(result):
            rows.append(row | {"failure": without_requests(result)})
            continue
        for side, each in result.items():
            row[side] = _figures(each, each["output_throughput"], each["flow"]["ttfts_s"])
            row[side]["busy"] = {name: round(each[name] / each["duration"], 3) for name in BUSY}
        rows.append(row | {"over": _over(row)})
    run.note(name, rows)


def put(
    run: Setting, bench: Bench, server: Measured, load: Load, seed: int, together: threading.Barrier | None = None
) -> dict[str, Any]:
    """Put one load on one server; add its CPU time and how long the guard held the requests."""
    get(f"{server.url}{HELD_PATH}")  # reset the guard's figures
    before_s = _cpu_s(server)
    result = bench.run(load, server.url, run.options.w4a16, seed=seed, key=run.key(), together=together)
    after_s = _cpu_s(server)
    code, held = get(f"{server.url}{HELD_PATH}")
    used = {name: round(after_s[name] - before_s[name], 2) for name in after_s}
    return result | used | ({"held": json.loads(held)} if code == HTTPStatus.OK else {})


def _cpu_s(server: Measured) -> dict[str, float]:
    """Return the CPU seconds of EngineCore and of the API server, which all requests pass through, and of their loops.

    servekit's own process is not in the requests' path and is left out; benchmarks/throughput.py measures it.
    """
    processes = server.processes() | ({} if isinstance(server, Served) else {server.process.pid: ""})
    core = [pid for pid, words in processes.items() if "EngineCore" in words]
    others = [pid for pid in processes if pid not in core]
    return {"server_cpu_s": cpu_seconds(others), "core_cpu_s": cpu_seconds(core)} | {
        "server_loop_s": cpu_seconds(others, main_threads=True),
        "core_loop_s": cpu_seconds(core, main_threads=True),
    }


def compared_row(load: Load, result: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare what one load gave on each side: servekit over vLLM alone.

    Throughput counts only while both are fully loaded: from the later of the two first tokens until one of them has
    begun to answer its last request. The end of a load is useless: streams run out, and the remaining server has the
    GPU alone. The time to the first token is the median over all requests but the first of each stream, which begin
    before all streams run. Its error treats requests as independent, although queued ones are not.
    """
    row = _named(load)
    if not _answered(result):
        return row | {"failure": without_requests(result)}
    flows = {side: each["flow"] for side, each in result.items()}
    first_tokens_s = [list(map(sum, zip(flow["sent_s"], flow["ttfts_s"], strict=True))) for flow in flows.values()]
    begin_s, end_s = max(map(min, first_tokens_s)), min(map(max, first_tokens_s))
    if end_s <= begin_s:
        return row | {"failure": f"both were fully loaded for {end_s - begin_s:.2f} s"}
    tokens = {side: tokens_between(flow, begin_s, end_s) for side, flow in flows.items()}
    if not all(tokens.values()):
        return row | {"failure": f"both were fully loaded for {end_s - begin_s:.2f} s, with {tokens} tokens"}
    for side in SIDES:
        ttfts_s = flows[side]["ttfts_s"]
        row[side] = _figures(result[side], tokens[side] / (end_s - begin_s), ttfts_s[load.streams :] or ttfts_s)
    return row | {"seconds_counted": round(end_s - begin_s, 2), "over": _over(row)}


def _answered(result: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether each side has figures and has answered a request."""
    return all(each.get("flow", {}).get("ttfts_s") for each in result.values())


def _figures(mine: Mapping[str, Any], tokens_per_s: float, ttfts_s: Sequence[float]) -> dict[str, Any]:
    requests, ttfts_ms = max(1, mine["completed"]), [1000 * ttft_s for ttft_s in ttfts_s]
    return {
        "output_tokens_per_s": round(tokens_per_s, 1),
        "median_ttft_ms": round(statistics.median(ttfts_ms), 2),
        "ttft_error_ms": round(median_error(ttfts_ms), 2),
        "requests_counted": len(ttfts_ms),
        "median_itl_ms": round(mine["median_itl_ms"], 3),
        "failed": mine["failed"],
        "server_cpu_ms_per_request": round(1000 * mine["server_cpu_s"] / requests, 2),
        "core_cpu_ms_per_request": round(1000 * mine["core_cpu_s"] / requests, 2),
        **({"held": mine["held"]} if "held" in mine else {}),
    }


def _over(row: Mapping[str, Any]) -> dict[str, float]:
    one, other = (row[side] for side in SIDES)
    return {
        "throughput": round(one["output_tokens_per_s"] / other["output_tokens_per_s"], 4),
        "ttft_added_ms": round(one["median_ttft_ms"] - other["median_ttft_ms"], 2),
        "ttft_error_ms": round(math.hypot(one["ttft_error_ms"], other["ttft_error_ms"]), 2),
        "itl_added_ms": round(one["median_itl_ms"] - other["median_itl_ms"], 3),
    }


def tokens_between(flow: Mapping[str, Any], begin_s: float, end_s: float) -> float:
    """Count the tokens of a load (`flow` of load.py) that arrived between two values of time.perf_counter."""
    first, last = (int(moment_s / BIN_S) - flow["first_bin"] for moment_s in (begin_s, end_s))
    return float(sum(flow["tokens"][max(0, first) : max(0, last)]))


def pooled(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Summarize the rounds of each load: means, and their standard errors.

    The spread of a round's throughput comes from all loads together, because each has few rounds. The spread of the
    time to the first token differs between loads by a factor of a thousand: its error is the larger of the single
    rounds' own errors and the spread between rounds.
    """
    rounds: defaultdict[str, list[Mapping[str, float]]] = defaultdict(list)
    for row in rows:
        if "over" in row:
            rounds[row["load"]].append(row["over"])
    ratios = {load: [over["throughput"] for over in overs] for load, overs in rounds.items()}
    spread = pooled_deviation(ratios.values())
    return {
        load: {
            "rounds": len(overs),
            "throughput": statistics.mean(ratios[load]),
            "throughput_error": spread / math.sqrt(len(overs)),
            "ttft_added_ms": statistics.mean(over["ttft_added_ms"] for over in overs),
            "ttft_error_ms": _mean_error(overs),
        }
        for load, overs in rounds.items()
    }


def burst_later(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Summarize the rounds of a burst: by how much servekit's median first token is later, with the standard error."""
    rounds = [row for row in rows if "over" in row]
    added_ms = [row["over"]["ttft_added_ms"] for row in rounds]
    shares = [ms / row["bare"]["median_ttft_ms"] for ms, row in zip(added_ms, rounds, strict=True)]
    return {
        "rounds": len(rounds),
        "ttft_added_ms": statistics.mean(added_ms),
        "ttft_error_ms": standard_error(added_ms),
        "share": statistics.mean(shares),
        "share_error": standard_error(shares),
    }


def _mean_error(overs: Sequence[Mapping[str, float]]) -> float:
    told = math.hypot(*(over["ttft_error_ms"] for over in overs)) / len(overs)
    if len(overs) == 1:
        return told
    return max(told, standard_error([over["ttft_added_ms"] for over in overs]))


def _named(load: Load) -> dict[str, Any]:
    return {"load": load.name, "streams": load.streams, "images": load.images}


def without_requests(result: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the results of single requests: there are thousands."""
    return {
        name: without_requests(value) if isinstance(value, Mapping) else value
        for name, value in result.items()
        if name != "flow"
    }
