"""The four parts of the proof. Each starts its servers, measures, ends them, and says what they left behind."""

import signal
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import QUICK, QUICK_RATIO, RATIO, SIDE_BY_SIDE, WARM_UP, Bench, Load
from benchmarks.gpu.card import read_card
from benchmarks.gpu.endpoint import Endpoint, Served
from benchmarks.gpu.engine_log import KEY_LINES, cache_config, compare, figures
from benchmarks.gpu.faults import drain, kill_core, refused_start, stop_core, terminate_in_phase
from benchmarks.gpu.setting import BASELINE, Setting, healthy

_AFTER_LOADS_S = 30
"""What the comparison of both checkpoints takes."""

LATE_PHASES = ("weights", "compile", "warm-up", "verify", "None")


def optimised(run: Setting) -> None:
    """Start cold and warm, compare plan and engine, load servekit and vLLM alone in turn, drain, kill EngineCore."""
    profile, model = run.profile(), run.options.w4a16
    run.note("check", run.ask("check", *run.flags(profile, model)))
    first = run.serve("cold", profile, model)
    bench = Bench(run.options.engine_python, run.out / "optimised-bench.log")
    start(run, first, "cold_start")
    about(run, first, run.record["check"].get("memory"))
    if run.gpu:  # beside a serving engine
        refuse(run, model)
    # It takes longer to reach the GPU than the drain takes: an engine that measures its memory is alone then.
    server = run.serve("warm", profile, model)
    size = (4, 48) if run.quick else (32, 400)
    run.step("drain", lambda: drain(run, first, streams=size[0], tokens=size[1]))
    run.note("cold_lines", first.find(*KEY_LINES))
    server.until(lambda: server.phase() in LATE_PHASES, 300)
    bare = run.serve_bare("bare", profile, model)
    start(run, server, "warm_start")
    run.note("warm_engine", figures(server))
    run.note("bare_start_s", bare.until(lambda: healthy(bare), 300))
    run.note("bare_engine", figures(bare))
    bench.ready()
    servers = {"servekit": server, "bare": bare}
    for each in servers.values():
        for warm in QUICK[:1] if run.quick else WARM_UP:
            bench.run(warm, each.url, model, seed=7, key=run.key())
    compare_loads(run, bench, servers)
    run.note("ratio", bench.run(QUICK_RATIO if run.quick else RATIO, server.url, model, seed=99, key=run.key()))
    bench.close()
    bare.signal(signal.SIGTERM)
    run.step("bare_end", lambda: bare.ending(time.monotonic(), 30))
    run.step("core_killed", lambda: kill_core(run, server, streams=4 if run.quick else 32))
    run.note("warm_lines", server.find(*KEY_LINES))
    run.note("bare_lines", bare.find(*KEY_LINES))


def refuse(run: Setting, model: Path) -> None:
    """Start what the card does not hold: refused before anything is loaded."""
    second, small = run.profile(budget_gib=71.0), run.profile(budget_gib=13.9)
    run.step("second_instance", lambda: refused_start(run, "second", second, model))
    run.step("too_small", lambda: refused_start(run, "too-small", small, model))


def stops(run: Setting) -> None:
    """Ask to stop in every phase of the start, in as many servers at once."""
    profile, model = run.profile(), run.options.w4a16
    results: dict[str, Any] = {}

    def one(phase: str) -> None:
        results[phase] = terminate_in_phase(run, phase, profile, model)

    parallel(*[(lambda phase=phase: run.step(f"sigterm-{phase}", lambda: one(phase))) for phase in run.options.phases])
    run.note("sigterm", results)


def baseline(run: Setting) -> None:
    """Measure the unquantized model with the same budget and load; then stop its EngineCore until it counts as hung."""
    profile, model = run.profile("profiles/fp16-baseline.yaml"), run.options.bf16
    run.note("check", run.ask("check", *run.flags(profile, model, *BASELINE)))
    bench = Bench(run.options.engine_python, run.out / "baseline-bench.log")
    server = run.serve("baseline", profile, model, *BASELINE, "--hang-s", "8")
    start(run, server, "start")
    about(run, server, run.record["check"].get("memory"))
    bench.ready()
    for warm in QUICK[:1] if run.quick else WARM_UP:
        bench.run(warm, server.url, model, seed=7, key=run.key())
    run.note("ratio", bench.run(QUICK_RATIO if run.quick else RATIO, server.url, model, seed=99, key=run.key()))
    bench.close()
    run.step("hang", lambda: stop_core(run, server, within_s=40))
    run.note("key_lines", server.find(*KEY_LINES))


def start(run: Setting, server: Served, name: str) -> None:
    """Wait until it is ready and note its timeline and its contract."""
    ready_s = server.until(server.ready, 500)
    status = server.status()
    run.note(
        name,
        {
            "ready_s": round(ready_s, 2),
            "start_seconds": status["start_seconds"],
            "phases": {span["phase"]: span["seconds"] for span in status["start_phases"]},
            "contract": status["contract"],
            "gpu_processes": own_gpu_bytes(server),
        },
    )


def about(run: Setting, server: Served, plan: dict[str, Any] | None) -> None:
    """Note what the engine says of itself, and how far the plan was from it."""
    engine = figures(server)
    run.note("engine", engine)
    run.note("cache_config", cache_config(server))
    if plan:
        run.note("plan_over_engine", compare(plan, engine))


def own_gpu_bytes(server: Endpoint) -> dict[str, int]:
    """Return what the driver says that each process of the server holds on the GPU."""
    reading = read_card()
    names = server.processes()
    held = reading.process_bytes if reading else {}
    return {names[pid]: size for pid, size in held.items() if pid in names}


def compare_loads(run: Setting, bench: Bench, servers: dict[str, Endpoint]) -> None:
    """Put every load on both servers, turn and turn about, for as many rounds as the time allows."""
    model: Path = run.options.w4a16
    rounds: list[dict[str, Any]] = []
    loads = QUICK if run.quick else SIDE_BY_SIDE
    longest_s = 0.0
    while len(rounds) < run.options.rounds and run.left_s() > longest_s + _AFTER_LOADS_S:
        began_s = time.monotonic()
        number = len(rounds)
        rounds.append({})
        for place, each in enumerate(loads):
            names = list(servers) if (number + place) % 2 == 0 else list(reversed(servers))
            seed = 1000 * number + place
            rounds[-1][each.name] = {
                name: bench.run(each, servers[name].url, model, seed=seed, key=run.key()) for name in names
            }
            run.record["rounds"] = rounds
            run.note("last_load", {"round": number, "load": each.name} | rounds[-1][each.name])
        longest_s = max(longest_s, time.monotonic() - began_s)
    run.note("side_by_side", [summarise(each, rounds) for each in loads])


def summarise(load: Load, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one load over all rounds: ratio of throughput, difference of medians."""
    row: dict[str, Any] = {"load": load.name, "rounds": len(rounds)}
    for name in ("servekit", "bare"):
        runs = [each[load.name][name] for each in rounds]
        if any("output_throughput" not in each for each in runs):
            return row | {"failure": runs}
        tokens = sum(each["total_output_tokens"] for each in runs)
        row[name] = {
            "output_tokens_per_s": round(tokens / sum(each["duration"] for each in runs), 1),
            "median_ttft_ms": round(statistics.median(each["median_ttft_ms"] for each in runs), 2),
            "median_itl_ms": round(statistics.median(each["median_itl_ms"] for each in runs), 3),
            "failed": sum(each["failed"] for each in runs),
        }
    served, bare = row["servekit"], row["bare"]
    row["throughput_ratio"] = round(served["output_tokens_per_s"] / bare["output_tokens_per_s"], 4)
    row["ttft_added_ms"] = round(served["median_ttft_ms"] - bare["median_ttft_ms"], 2)
    row["itl_added_ms"] = round(served["median_itl_ms"] - bare["median_itl_ms"], 3)
    return row


def parallel(*tasks: Callable[[], None]) -> None:
    """Run the tasks at once and wait for all."""
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
