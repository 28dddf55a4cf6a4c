"""Starts with the same kept caches, one after the other: where the seconds go, and what each change of one saves."""

import json
import os
import statistics
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.engine_log import MOMENTS, figures, moments
from benchmarks.gpu.setting import INSIDE, Setting, before
from tests.harness.processes import cpu_seconds, memory_of
from tests.harness.server import Server

ONE_START_S = 100
"""Time to leave for one more start."""
LOADED = "weights loaded"
TOP = 60
FEWER = [1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(320, 513, 64)]


@dataclass(frozen=True)
class Kind:
    """One way to start: vLLM `alone` or servekit, and what is different."""

    alone: bool = False
    sampled: bool = False
    """Whether each process records where it spends its time (`inside/sampled`)."""
    variables: dict[str, str] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    """Keys that the profile gets."""


FORK = {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
KINDS = {
    "fill": Kind(),
    "alone": Kind(alone=True),
    "alone-fork": Kind(alone=True, variables=FORK),
    "alone-sampled": Kind(alone=True, sampled=True),
    "servekit": Kind(),
    "servekit-sampled": Kind(sampled=True),
    "servekit-fork": Kind(variables=FORK),
    "fewer-graphs": Kind(profile={"compilation-config": {"cudagraph_capture_sizes": FEWER}}),
    "decode-graphs": Kind(profile={"compilation-config": {"cudagraph_mode": "FULL_DECODE_ONLY"}}),
    "one-artifact": Kind(variables={"VLLM_USE_MEGA_AOT_ARTIFACT": "1"}),
    "no-autotune": Kind(profile={"enable-flashinfer-autotune": False}),
    "fixed-cache": Kind(profile={"kv-cache-memory-bytes": 6_500_000_000}),
    "no-encoder-profile": Kind(profile={"skip-mm-profiling": True}),
}
"""`fill` fills the caches and is not compared. `NAME:loaded` ends once the model is loaded. With `fixed-cache` vLLM
does not estimate the memory of CUDA graphs, nor how much is left for the cache."""
STARTS = ("fill", "alone", "servekit", "servekit-fork")


def warm_start(run: Setting) -> None:
    """Make each of `--starts` in turn, `--rounds` times while there is time, and print a table of them."""
    done: dict[str, list[dict[str, float]]] = {}
    again = [name for name in run.options.starts if name != "fill"]
    for name in [*run.options.starts, *again * (run.options.rounds - 1)]:
        if run.left_s() < ONE_START_S:
            run.note("left_out", name)
            continue
        run.step(f"start {name}", partial(one_start, run, name, done))
        run.note("starts", done)
    print("\n".join(table(done)), flush=True)


def one_start(run: Setting, name: str, done: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Start, wait, end; add to `done` the second of each moment, the processor time and the memory; return them."""
    kind_name, _, until = name.partition(":")
    kind, number = KINDS[kind_name], len(run.endpoints)
    profile, variables = run.profile(), dict(kind.variables)
    lines = (f"{key}: {json.dumps(value)}\n" for key, value in kind.profile.items())
    profile.write_text(profile.read_text() + "".join(lines))
    samples = run.out / f"samples-{number}"
    if kind.sampled:
        samples.mkdir()
        variables |= {
            "START_SAMPLES": str(samples),
            "PYTHONPATH": before(INSIDE / "sampled", os.environ.get("PYTHONPATH")),
        }
    start = run.serve_bare if kind.alone else run.serve
    server = start(f"{kind_name}-{number}", profile, run.options.w4a16, variables=variables)
    try:  # `Server.until`: looking for processes 50 times a second would take time from the engine
        if until:
            Server.until(server, lambda: LOADED in moments(server), LOADED, 500)
        else:
            Server.until(server, server.is_ready, "readiness", 500)
        found = moments(server) | ({} if until else {"ready": server.age_s})
        pids = [server.pid, *server.processes()]
        found["cpu_s"], found["pss_gib"] = cpu_seconds(pids), sum(memory_of(pid).pss_bytes for pid in pids) / 2**30
        found = {each: round(value, 2) for each, value in found.items()} | figures(server)
        done.setdefault(name, []).append(found)
        return found
    finally:
        server.close()
        server.await_gpu()
        for path in sorted(samples.glob("*.json")):
            print("\n".join(read_samples(path)), flush=True)


def read_samples(path: Path) -> list[str]:
    """Return as lines where a process spent its time, the most first."""
    seen = json.loads(path.read_text())
    longest = sorted(seen["seconds"].items(), key=lambda item: -item[1])[:TOP]
    head = f"process {path.stem}, {seen['age_s']:.1f} s: {' '.join(seen['argv'])[:100]}"
    return [head, *(f"{value:8.2f} {name}" for name, value in longest)]


def table(done: dict[str, list[dict[str, float]]]) -> list[str]:
    """Format the medians as a table: the second of each moment, and what passed since the one before."""
    medians = {
        name: {each: statistics.median(start[each] for start in starts if each in start) for each in starts[0]}
        for name, starts in done.items()
    }
    alone_s = medians.get("alone", {}).get("ready", 0)
    rows: dict[str, list[str]] = {}
    for name in (*MOMENTS, "ready", "processor time", "memory GiB", "ready / alone"):
        rows[name] = []
    for found in medians.values():
        last_s = 0.0
        for each in (*MOMENTS, "ready"):
            rows[each].append(f"{found[each]:.1f} +{found[each] - last_s:.1f}" if each in found else "")
            last_s = found.get(each, last_s)
        rows["processor time"].append(f"{found['cpu_s']:.1f}")
        rows["memory GiB"].append(f"{found['pss_gib']:.2f}")
        rows["ready / alone"].append(f"{found['ready'] / alone_s:.2f}" if alone_s and "ready" in found else "")
    head = f"{'seconds':<18}" + "".join(f"{name:>20}" for name in medians)
    return [head, *(f"{name:<18}" + "".join(f"{cell:>20}" for cell in cells) for name, cells in rows.items())]
