"""The stages of the proof. Each starts its servers, measures, ends them, and records what they left behind."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu import full_cache, memory, warm_starts
from benchmarks.gpu.bench import (
    BURST,
    IMAGES,
    LOADS,
    QUICK,
    QUICK_BURST,
    QUICK_RATIO,
    QUIET,
    RATIO,
    WARM_UP,
    Bench,
    Load,
)
from benchmarks.gpu.compare import at_once, in_turns, put
from benchmarks.gpu.endpoint import Measured, Served
from benchmarks.gpu.engine_log import KEY_LINES, cache_config, compare, figures
from benchmarks.gpu.faults import drain, kill_core, refused_start, stop_core, terminate_in_phase
from benchmarks.gpu.reading import read_gpu
from benchmarks.gpu.setting import BASELINE, STAGES, Setting
from servekit.measure.recording.session import Job, measure

RATIO_ROUNDS = 2
BURST_ROUNDS = 10


def start(run: Setting) -> None:
    """Start with empty caches; compare plan and engine; refuse what does not fit beside it; drain under load."""
    profile, model = run.profile(), run.options.w4a16
    run.note("check", run.ask("check", *run.flags(profile, model)))
    server = run.serve("cold", profile, model)
    started(run, server, "cold_start")
    about(run, server)
    if run.gpu:  # beside a serving engine
        for name, budget_gib in (("second_instance", 71.0), ("too_small", 13.9)):
            refused = run.profile(budget_gib=budget_gib)
            run.step(name, partial(refused_start, run, name, refused, model))
    size = (4, 48) if run.quick else (32, 400)
    run.step("drain", lambda: drain(run, server, streams=size[0], tokens=size[1]))
    run.note("lines", server.find(*KEY_LINES))


def load(run: Setting, *, bare_first: bool = False) -> None:
    """Start with the kept caches; load servekit and vLLM alone at the same time; kill EngineCore under load.

    `bare_first`: start vLLM alone before servekit, and give the guard no stopwatch, which costs time itself.
    """
    profile, model = run.profile(), run.options.w4a16
    stage = run.options.stage
    benches = [Bench(run.options.engine_python, run.out / f"{stage}-bench-{number}.log") for number in (1, 2)]
    # An engine must be alone on the GPU while it profiles its memory: the second one starts early, because the first
    # has finished profiling by the time the second one has imported vLLM.
    if bare_first:
        bare = run.serve_bare(f"{stage}-bare", profile, model)
        bare.until(lambda: {"compile_s", "pool_tokens"} & set(figures(bare)), "KV cache", 300)
        server = run.serve(f"{stage}-servekit", profile, model)
    else:
        server = run.serve(f"{stage}-servekit", profile, model, timed=True)
        server.until(lambda: server.is_past("compile"), "end of the compilation", 300)
        bare = run.serve_bare(f"{stage}-bare", profile, model)
    started(run, server, "warm_start")
    run.note("bare_start_s", round(bare.until(bare.is_ready, "readiness", 300), 2))
    run.note("engines", {"servekit": figures(server), "bare": figures(bare)})
    for bench in benches:
        bench.ready()
    servers: dict[str, Measured] = {"servekit": server, "bare": bare}
    for bench, each in zip(benches, servers.values(), strict=True):
        for warm in QUICK[:1] if run.quick else WARM_UP:
            put(run, bench, each, warm, seed=7)
    if bare_first:  # a stopwatch costs time itself
        in_turns(run, benches, servers, *((QUICK_BURST, 2) if run.quick else (BURST, BURST_ROUNDS)), "bursts")
    at_once(run, benches, servers, QUICK if run.quick else LOADS)
    for bench in benches:
        bench.close()
    asked_s = bare.signal(signal.SIGTERM)
    run.step("bare_end", lambda: bare.ending(asked_s, 30))
    run.step("core_killed", lambda: kill_core(run, server, streams=4 if run.quick else 32))


def images(run: Setting) -> None:
    """Put images on servekit and on vLLM alone in turns: each has the GPU, and `--cores` of this host, to itself."""
    profile, model, stage = run.profile(), run.options.w4a16, run.options.stage
    benches = [Bench(run.options.engine_python, run.out / f"{stage}-bench-{number}.log") for number in (1, 2)]
    cores = sorted(os.sched_getaffinity(0))[: run.options.cores]
    os.sched_setaffinity(0, cores)  # the servers inherit it; the load generators are other hosts, as it were
    run.note("cores", len(cores))
    memory.cap(run)
    server = run.serve(f"{stage}-servekit", profile, model)
    server.until(lambda: server.is_past("compile"), "end of the compilation", run.left_s())
    bare = run.serve_bare(f"{stage}-bare", profile, model)
    started(run, server, "start")
    bare.until(bare.is_ready, "readiness", run.left_s())
    run.note("engines", {"servekit": figures(server), "bare": figures(bare)})
    servers: dict[str, Measured] = {"servekit": server, "bare": bare}
    for bench, each in zip(benches, servers.values(), strict=True):
        bench.ready()
        for warm in QUICK[:1] if run.quick else WARM_UP:
            put(run, bench, each, warm, seed=7)
    for load in QUICK[2:] if run.quick else IMAGES:
        in_turns(run, benches, servers, load, 2, load.name)
    run.note("queues", {side: each.find("Avg prompt throughput") for side, each in servers.items()})
    for bench in benches:
        bench.close()


def baseline(run: Setting) -> None:
    """Load the unquantized and the quantized model alternately, same budget; then stop the former's EngineCore."""
    profile, model = run.profile("profiles/fp16-baseline.yaml"), run.options.bf16
    run.note("check", run.ask("check", *run.flags(profile, model, *BASELINE)))
    bench = Bench(run.options.engine_python, run.out / "baseline-bench.log")
    server = run.serve("baseline", profile, model, *BASELINE, "--hang-s", "8")
    server.until(lambda: server.is_past("compile"), "end of the compilation", 400)
    optimised = run.serve("optimised", run.profile(), run.options.w4a16)
    started(run, server, "start")
    about(run, server)
    optimised.until_ready(300)
    run.note("optimised_engine", figures(optimised))
    bench.ready()
    servers = {"optimised": optimised, "baseline": server}
    for each in servers.values():
        for warm in QUICK[:1] if run.quick else WARM_UP[:1]:
            bench.run(warm, each.url, model, seed=7, key=run.key())
    bench.close()
    ratio: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    ratio_load, rounds = (QUICK_RATIO, 1) if run.quick else (RATIO, RATIO_ROUNDS)
    for number in range(rounds):
        for name, each in servers.items():
            ratio[name].append(measured(run, f"ratio-{name}-{number + 1}", each, ratio_load, seed=99 + number))
        run.note("ratio", ratio)
    asked_s = optimised.signal(signal.SIGTERM)
    run.step("optimised_end", lambda: optimised.ending(asked_s, 60))
    run.step("hang", lambda: stop_core(run, server, within_s=40))
    run.note("lines", server.find(*KEY_LINES))


def measured(run: Setting, name: str, server: Served, load: Load, seed: int) -> dict[str, Any]:
    """Put a load on one server under `servekit measure`; return the figures of its record, OUT/NAME.json."""
    command = [run.options.engine, "bench", "serve", *load.arguments(server.url, run.options.bf16, seed)]
    job = Job(
        name=name.rpartition("-")[0],
        out=run.out / f"{name}.json",
        command=command,
        idle_s=0,
        url=server.observe_url,
        variables=QUIET | {"OPENAI_API_KEY": run.key()},
        quiet=True,
    )
    record, code = measure(job)
    if record is None or record.run.work is None or code:
        return {"failure": f"exit code {code}: {record.engine.why if record else 'interrupted'}"}
    figures = {
        "total_output_tokens": record.run.work.output_tokens,
        "duration": record.run.duration_s,
        "energy_j": record.run.energy.joules,
        "preemptions": record.engine.preemptions,
    }
    return figures | {
        "steady": record.steady.model_dump(include={"output_tokens_per_s", "efficiency"}) if record.steady else None
    }


def stops(run: Setting) -> None:
    """Stop in every phase of the start; then start with a share too small for one request, all warnings off.

    An engine must be alone on the GPU while it profiles its memory. Servers that stop before that start in parallel.
    From `warm-up` on, each starts when the previous one is about to be stopped, and that one has ended before the next
    has finished its imports.
    """
    profile, model = run.profile(), run.options.w4a16
    near = {phase: threading.Event() for phase in run.options.phases}

    def stop(phase: str) -> None:
        run.step(f"sigterm-{phase}", lambda: terminate_in_phase(run, phase, profile, model, near[phase]))
        near[phase].set()

    early = [phase for phase in run.options.phases if phase not in ("warm-up", "verify")]
    late = [phase for phase in run.options.phases if phase not in early]
    threads = [threading.Thread(target=stop, args=(phase,)) for phase in early]
    for thread in threads:
        thread.start()
    for before, phase in zip((early[-1] if early else None, *late), late, strict=False):
        if before:
            near[before].wait(240)
        threads.append(threading.Thread(target=stop, args=(phase,)))
        threads[-1].start()
    if run.gpu:
        near[run.options.phases[-1]].wait(240)
        small, skipped = run.profile(budget_gib=13.9), ("--skip", "memory-one-request")
        run.step("too_small_unchecked", lambda: refused_start(run, "unchecked", small, model, *skipped))
    for thread in threads:
        thread.join()


def started(run: Setting, server: Served, name: str) -> None:
    """Wait until the server is ready and record its timeline and its contract."""
    ready_s = server.until(server.is_ready, "readiness", 500)
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


def about(run: Setting, server: Served) -> None:
    """Record the engine's own figures and the plan's error."""
    engine = figures(server)
    run.note("engine", engine)
    run.note("cache_config", cache_config(server))
    if plan := run.record["check"].get("memory"):
        run.note("plan_over_engine", compare(plan, engine))


def own_gpu_bytes(server: Measured) -> dict[str, int]:
    """Return the GPU memory of each process of the server, as the driver reports it."""
    gpu = read_gpu()
    names = server.processes()
    held = gpu.processes if gpu else {}
    return {names[pid]: size for pid, size in held.items() if pid in names}


RUN: dict[str, Callable[[Setting], None]] = dict(
    zip(
        STAGES,
        (
            *(start, load, partial(load, bare_first=True), images, baseline, stops),
            *(memory.guarded, full_cache.full, memory.bare, warm_starts.warm_start),
        ),
        strict=True,
    )
)
