"""Both sides in turns: `python -m benchmarks.gpu_embeddings STAGE ...`; README.md in this folder has the commands."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.endpoint import Served
from benchmarks.gpu.engine_log import compare, figures
from benchmarks.gpu.memory import L4_BUDGET_GIB, cap
from benchmarks.gpu.setting import Setting, machine
from benchmarks.gpu_embeddings.judge import judge
from servekit.measure.bench.loads import Generator, Load
from servekit.serve.guard import INSIDE
from servekit.serve.guard.inside.servekit_guard.core.embeddings import VARIABLE

SIDES = {
    "host": ("--embeddings", "host", "--sampler", "flashinfer"),
    "gpu": ("--embeddings", "gpu", "--sampler", "vllm"),
}
"""All that servekit gains by its plugins, and the profile as the card has it."""
PROGRAM = Path(__file__).with_name("answers.py")
ANSWERS = {"prompts": 1000, "length": 200, "tokens": 64}
QUICK_ANSWERS = {"prompts": 24, "length": 24, "tokens": 8}
TABLE = ("262144", "10752")
"""Words and columns of E4B's per-layer embeddings."""
BLOCKS = 20_000
"""More than 1,000 answers need, and as many on both sides."""
CLEARS = """
import torch
from servekit_guard.core.embeddings import clear_error
torch.zeros(1, device="cuda")
assert int(torch.cuda.cudart().cudaHostRegister(0, 4096, 0)), "CUDA has registered the address 0"
with torch.device("cuda"):
    clear_error()
    assert torch.ones(8).sum().item() == 8
"""
"""A failed call of CUDA's runtime, as a failed cudaHostAlloc, then a kernel that must not be blamed for it."""


def main() -> None:
    """Run one stage, write OUT/STAGE.json, print each target, and exit with 1 where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("answers", "load"))
    parser.add_argument("--out", type=Path, required=True, help="folder for records and logs")
    parser.add_argument("--w4a16", type=Path, required=True, help="the quantized checkpoint")
    parser.add_argument("--cache", type=Path, required=True, help="SERVEKIT_CACHE_DIR")
    parser.add_argument("--engine", default="vllm", help="the program")
    parser.add_argument("--engine-python", default=sys.executable, help="a Python that can import vllm")
    parser.add_argument("--target", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--within-s", type=float, default=560, help="time limit of the stage in seconds")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: everything once, as short as possible")
    options = parser.parse_args(namespace=argparse.Namespace(budget_gib=L4_BUDGET_GIB, flag=[]))
    options.state = options.out / "state"
    options.out.mkdir(parents=True, exist_ok=True)
    run = Setting(options, options.out)
    run.note("stage", options.stage)
    run.note("machine", machine())
    try:
        {"answers": answers, "load": load}[options.stage](run)
    finally:
        run.close()
    found = list(judge(run.record))
    run.note("targets", [{"target": name, "met": met, "figure": figure} for name, met, figure in found])
    sys.exit(not all(met for _, met, _ in found))


def answers(run: Setting) -> None:
    """Compare logits and greedy answers, a process for each side, with equal batches and equally many blocks.

    The GPU's side runs twice: answers that it does not repeat itself say nothing about the other side.
    """
    plan = run.ask("plan", *run.flags(run.profile(), run.options.w4a16, "--embeddings", "gpu"))["memory"]
    blocks = min(plan["blocks"], BLOCKS)
    limits = {"image": 3, "audio": 0, "video": 0}
    engine = {
        "dtype": "bfloat16",
        "max_model_len": 512,
        "num_gpu_blocks_override": blocks,
        "limit_mm_per_prompt": limits,
    }
    if run.gpu:
        engine |= {"kv_cache_dtype": "fp8_e4m3", "quantization": "compressed-tensors", "max_num_seqs": 1024}
        engine |= {"gpu_memory_utilization": plan["budget_bytes"] / plan["total_bytes"], "max_num_batched_tokens": 4096}
        run.step("clears", lambda: inside(run, "clears", {}, "-c", CLEARS))
        run.step("gathers", lambda: inside(run, "gathers", {}, str(PROGRAM.with_name("gathers.py")), *TABLE))
    else:
        engine |= {"enforce_eager": True}
    size = QUICK_ANSWERS if run.quick else ANSWERS
    wanted = json.dumps({"rehearse": not run.gpu, "engine": engine, **size})
    found = {}
    for side, setting in {"host": {VARIABLE: "host"}, "gpu": {}, "again": {}}.items():
        out = run.out / f"answers-{side}.json"
        inside(run, f"answers-{side}", setting, str(PROGRAM), str(run.options.w4a16), str(out), wanted)
        found[side] = json.loads(out.read_text())
        run.note(f"report_{side}", found[side].pop("reports"))
    if run.gpu:
        run.note("places", {side: run.record[f"report_{side}"][0]["per-layer-embeddings"] for side in SIDES})
    run.note("answers", found)


def load(run: Setting) -> None:
    """Send each endpoint more requests of full length than fit, then load both in turns with sampled streams."""
    model, generator = run.options.w4a16, run.options.engine
    servers = both(run)
    run.note("long_requests", {side: _at_once(run, generator, server, model) for side, server in servers.items()})
    text, count = (Load("text", 4, "sampled"), 8) if run.quick else (Load("text", 512, "sampled"), 1024)
    short = ("--random-input-len", "40", "--random-output-len", "20") if run.quick else ()
    for side, server in servers.items():
        measured(run, f"warm-up-{side}", server, _command(generator, server, model, text, text.streams, 1, *short))
    turns: list[dict[str, Any]] = []
    took_s = 0.0
    while not turns or (run.left_s() > took_s and not run.quick):
        left_s, seed = run.left_s(), 100 + len(turns)  # the same prompts on both sides of a turn
        for side in list(SIDES)[:: -1 if len(turns) % 4 else 1]:
            command = _command(generator, servers[side], model, text, count, seed, *short)
            record = measured(run, f"turn-{len(turns)}-{side}", servers[side], command)
            window = record["steady"] or record["run"]
            per_wh = window["efficiency"]["output_tokens_per_wh"]
            turns.append({"side": side, "tokens_per_s": window["output_tokens_per_s"], "tokens_per_wh": per_wh})
        took_s = left_s - run.left_s()
        run.note("turns", turns)


def both(run: Setting) -> dict[str, Served]:
    """Return both endpoints, ready and held to an L4's memory; compare their pools with the plan."""
    model = run.options.w4a16
    cap(run)
    servers: dict[str, Served] = {}
    for side, words in SIDES.items():  # in turn: an engine profiles its memory alone
        if run.gpu or not servers:  # on the CPU one endpoint is both sides: there the setting does nothing
            server = run.serve(side, run.profile(), model, *words)
            server.until_ready(400)
        servers[side] = server
    run.note("engines", {side: figures(server) for side, server in servers.items()})
    plans = {side: run.ask("plan", *run.flags(run.profile(), model, *words))["memory"] for side, words in SIDES.items()}
    run.note("plan_over_engine", {side: compare(plans[side], run.record["engines"][side]) for side in SIDES})
    if run.gpu:
        contract = {side: {each["item"]: each["got"] for each in servers[side].status()["contract"]} for side in SIDES}
        run.note("places", {side: contract[side]["per-layer-embeddings"] for side in SIDES})
    return servers


def measured(run: Setting, name: str, server: Served, command: list[str]) -> dict[str, Any]:
    """Return the record that `servekit measure` makes of a command."""
    out = run.out / f"{name}.json"
    words = ["measure", "--name", name, "--out", str(out), "--idle-s", "0", "--quiet", "--observe", server.observe_url]
    env = run.environ() | {"OPENAI_API_KEY": run.key()}
    for old in (out, out.with_suffix(".trace.jsonl.gz")):
        old.unlink(missing_ok=True)
    with (run.out / f"{name}.log").open("wb") as log:
        whole = [sys.executable, "-m", "servekit.cli.main", *words, "--", *command]
        subprocess.run(whole, check=True, env=env, stdout=log, stderr=log)
    return dict(json.loads(out.read_text()))


def inside(run: Setting, name: str, setting: dict[str, str], *words: str) -> int:
    """Run the engine's Python with the guard's folder on its path, and with these variables; return 0."""
    env = {each: value for each, value in run.environ().items() if not each.startswith("SERVEKIT_")} | setting
    env["PYTHONPATH"] = os.pathsep.join((str(INSIDE), *filter(None, [env.get("PYTHONPATH")])))
    env |= {"VLLM_CACHE_ROOT": str(run.options.cache / "vllm"), "HF_HUB_OFFLINE": "1"}
    env |= {} if run.gpu else {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with (run.out / f"{name}.log").open("wb") as log:
        command = [run.options.engine_python, *words]
        return subprocess.run(command, check=True, env=env, stdout=log, stderr=log, cwd=run.out).returncode


def _command(engine: str, server: Served, model: Path, load: Load, requests: int, seed: int, *extra: str) -> list[str]:
    return Generator(engine, server.url, "model", str(model)).command(load, requests, seed, *extra)


def _at_once(run: Setting, engine: str, server: Served, model: Path) -> float:
    """Send more requests of full length than fit; return the most that ran at once.

    The answers are long enough for the first to run until the last prompt that fits has been read.
    """
    streams, tokens_in, tokens_out = (4, 200, 10) if run.quick else (110, 19_400, 500)
    sizes = ("--random-input-len", str(tokens_in), "--random-output-len", str(tokens_out))
    whole = ("--random-range-ratio", "0")
    command = _command(engine, server, model, Load("text", streams, "sampled"), streams, 7, *sizes, *whole)
    return float(measured(run, f"long-{server.port}", server, command)["engine"]["running"]["highest"])


if __name__ == "__main__":
    main()
