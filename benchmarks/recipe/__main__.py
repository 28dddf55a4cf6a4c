"""The recipe at work: `python -m benchmarks.recipe mistakes|ablation|gpu`. Needs .venv-recipe.

mistakes  compresses a tiny model with each of five steps left out or done wrongly, and prints what `verify` says
ablation  compresses a base with and without pruning, serves all three, and prints how far their next words are apart
gpu       compresses a model with E4B's shapes on a GPU. `--for-s` ends it after so many seconds, with the figures of
          the layers that are done and what the rest would take; the next call continues

`--base` is a checkpoint in BF16 and `--calibration` a JSONL file; without them, the tests' tiny model and made-up rows.
"""

import argparse
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from servekit.demo.build import build_demo_model
from servekit.recipe.agreement import Agreement, Endpoint, compare, read_prompts, record
from tests.harness.endpoint import Endpoint as Served
from tests.harness.endpoint import clean_environment
from tests.harness.server import ENGINE, ROOT
from tests.recipe.conftest import PYTHON, write_rows

RECIPE = ROOT / "recipes" / "gemma4-e4b-opt"
RECIPE_PYTHON = ROOT / ".venv-recipe" / "bin" / "python"
SERVEKIT = (sys.executable, "-m", "servekit.cli.main")
MISTAKES = ("pruning", "rounding", "sharing", "tower", "garbage")
BASELINE = ("--config", "profiles/fp16-baseline.yaml", "--deviate", "quantization", "--deviate", "kv-cache-dtype")


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mistakes", "ablation", "gpu"])
    parser.add_argument("--folder", type=Path, default=Path("build/recipe"), help="for everything that is made")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--target", choices=["cpu", "cuda"], default="cpu", help="of the endpoints of `ablation`")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="of `gpu`")
    parser.add_argument("--for-s", type=float, help="end `gpu` after so many seconds, with its base")
    options = parser.parse_args()
    began_s = time.monotonic()
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    rows = options.calibration or write_rows(folder / "rows.jsonl", 200)
    base = options.base or make_base(folder, "e4b" if options.what == "gpu" else "tiny")
    if options.what == "mistakes":
        mistakes(folder, base, rows, options.samples)
    elif options.what == "ablation":
        ablation(folder, base, rows, options.samples, options.target)
    else:
        left_s = options.for_s and max(0.0, options.for_s - (time.monotonic() - began_s))
        print(f"the base was there or built after {time.monotonic() - began_s:.0f} s", flush=True)
        words = ("--samples", str(options.samples), "--device", options.device)
        gpu(base, folder / "e4b-w4a16", ("--calibration", str(rows), *words), left_s)


def make_base(folder: Path, size: str) -> Path:
    """Return a base, built if missing: tiny with trained-looking weights, or E4B's shapes with random ones."""
    out = folder / f"base-{size}"
    if not out.exists() and size == "e4b":
        build_demo_model(out, size="e4b", quantized=False, progress=print)
    elif not out.exists():
        build_demo_model(folder / "random", quantized=False)
        subprocess.run([PYTHON, ROOT / "tests" / "recipe" / "trained.py", folder / "random", out], check=True)
    return out


def quantize(base: Path, out: Path, rows: Path, samples: int, *more: str) -> None:
    """Run `servekit quantize`, unless `out` exists."""
    if not out.exists():
        words = (*SERVEKIT, "quantize", base, out, "--calibration", rows, "--samples", str(samples), *more)
        subprocess.run([str(word) for word in words], cwd=ROOT, check=True)


def mistakes(folder: Path, base: Path, rows: Path, samples: int) -> None:
    """Print a row of a table for the right way and for each mistake."""
    print("| step | `servekit verify --texts` |\n|---|---|")
    for name in ("none", *MISTAKES):
        out = folder / f"wrong-{name}"
        if name in {"none", "pruning"}:
            quantize(base, out, rows, samples, *(["--skip-pruning"] if name == "pruning" else []))
        elif not out.exists():
            words = [RECIPE_PYTHON, ROOT / "benchmarks/recipe/wrong.py", RECIPE, name, base, out]
            words += ["--calibration", rows, "--samples", str(samples)]
            subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
        verify = (*SERVEKIT, "verify", out, "--base", base, "--texts", rows, "--samples", "16", "--format", "json")
        done = subprocess.run([str(word) for word in verify], cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
        said = {f"{each['name']}: {each['subject']}" for each in json.loads(done.stdout)["findings"]}
        print(f"| {name} | exit {done.returncode}; {'; '.join(sorted(said)) or 'as intended'} |", flush=True)


def ablation(folder: Path, base: Path, rows: Path, samples: int, target: str) -> None:
    """Print the card's ablation: agreement with the base and tokens per answer, without pruning and with it."""
    quantize(base, folder / "quant-only", rows, samples, "--skip-pruning")
    quantize(base, folder / "prune10", rows, samples)
    with served(base, target, folder, *BASELINE) as endpoint:
        words = record(endpoint, read_prompts(None), positions=32, max_tokens=256)
    (folder / "base-words.json").write_text(json.dumps(words))
    found: dict[str, Agreement] = {}
    for name in ("quant-only", "prune10"):
        with served(folder / name, target, folder) as endpoint:
            found[name] = compare(endpoint, words)
    print("| | KL, nats | 99th percentile | top-1 | tokens per answer |\n|---|---|---|---|---|")
    print(f"| base | 0 | 0 | 100.0% | {found['prune10'].base_tokens:.0f} |")
    for name, of in found.items():
        print(f"| {name} | {of.divergence_nats:.4f} | {of.worst_nats:.4f} | {of.top1:.1%} | {of.tokens:.0f} |")


@contextmanager
def served(model: Path, target: str, folder: Path, *flags: str) -> Iterator[Endpoint]:
    """Serve a model while the block runs."""
    engine = {} if target == "cuda" else {"SERVEKIT_ENGINE": str(ENGINE)}
    caches = {"SERVEKIT_CACHE_DIR": str(folder / "cache"), "SERVEKIT_STATE_DIR": str(folder / "state")}
    environ = clean_environment(**engine, **caches)
    with Served(["--target", target, "--model", str(model), *flags], environ).start() as server:
        server.until_ready(1200)
        yield Endpoint(server.url, server.key)


def gpu(base: Path, out: Path, words: Sequence[str], for_s: float | None) -> None:
    """Compress a model of E4B's shapes on the GPU, in pieces if need be, and print time and memory."""
    if not out.exists():
        command = [*SERVEKIT, "quantize", str(base), str(out), *words]
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
            try:
                process.wait(for_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                print(so_far(base, out.with_name(f".{out.name}.work")))
                return
        if process.returncode:
            sys.exit(process.returncode)
    made = yaml.safe_load((out / "quantization.yaml").read_text())
    print(f"{made['seconds']} s (the card: 4,840 s), peak {made['peak']} (the card: 16.8 GB of GPU memory)", flush=True)
    for more in (("plan", "--target", "cuda", "--model", out, "--gpu", "l4"), ("verify", out, "--base", base)):
        subprocess.run([str(word) for word in (*SERVEKIT, *more)], cwd=ROOT, check=True)


def so_far(base: Path, work: Path) -> str:
    """Return the figures of the layers that are kept, and what all of them would take at their pace."""
    layers = json.loads((base / "config.json").read_text())["text_config"]["num_hidden_layers"]
    lines, whole_s, records = [], 0.0, []
    for step in ("prune", "quantize"):
        files = sorted(work.glob(f"{step}-*.safetensors"))
        ends = [file.stat().st_mtime for file in files]
        each_s = statistics.median([after - before for before, after in itertools.pairwise(ends)] or [math.nan])
        lines.append(f"{step}: {len(files)} of {layers} layers, {each_s:.2f} s each")
        whole_s += layers * each_s
        records += [kept_record(file) for file in files]
    peak = {kind: max((each.get(kind, 0.0) for each in records), default=0.0) for kind in ("gpu_gb", "host_gb")}
    lines += [f"peak so far: {peak['gpu_gb']} GB of GPU memory (the card: 16.8), {peak['host_gb']} GB of host memory"]
    if not math.isnan(whole_s):
        lines += [f"reckoned for all layers: {whole_s:,.0f} s, without load and write (the card: 4,840 s)"]
    return "\n".join([*lines, "the same command continues"])


def kept_record(file: Path) -> dict[str, Any]:
    """Return what the recipe noted in the header of a layer that it keeps."""
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    return dict(json.loads(header["__metadata__"]["record"]))


if __name__ == "__main__":
    main()
