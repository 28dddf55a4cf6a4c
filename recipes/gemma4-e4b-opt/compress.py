"""Prune and quantize a Gemma 4 checkpoint by the recipe beside this file; run by `servekit quantize`.

    .venv-recipe/bin/python recipes/gemma4-e4b-opt/compress.py BASE OUT --calibration ROWS.jsonl

Reports on standard output, each line MARK and a JSON object: {"step", "layer", "layers", "left_s"} while it works,
{"problem", "remedy"} before exit 3, {"done"} at the end. The log of the libraries goes to standard error.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

MARK = "servekit-recipe "
PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch", "datasets")
PROOF_TOKENS = 64
"""Length of the text on which the way through the layers is compared with the model's own."""
HESSIANS = 5
"""Copies of the largest matrix's Hessian that are alive at once: gathered, measured, permuted, and its factors."""


def main() -> None:
    """Read the arguments, check, compress, write."""
    options = parse()
    began = time.monotonic()
    import torch

    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.manual_seed(options.seed)
    base, revision = find_base(options.base)
    if options.device == "cuda" and not torch.cuda.is_available():
        stop("no CUDA GPU is visible (got --device cuda)", "check the driver, or give --device cpu")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if options.device == "auto" else options.device)
    check_room(base, options.out, device)
    rows, origin = read_rows(options.calibration, options.samples, options.seed)
    recipe = load_recipe(options.recipe, skip_pruning=options.skip_pruning)
    job = {
        "base": {
            "name": base.resolve().name if base == Path(options.base) else options.base,
            "revision": revision,
            **fingerprint(base),
        },
        "calibration": origin | {"samples": len(rows), "max_seq_len": options.max_seq_len, "seed": options.seed},
        "recipe_sha256": digest(json.dumps(recipe, sort_keys=True).encode()),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
    }
    work = work_folder(options.out, job)

    report(step="load")  # the libraries' imports alone take seconds: everything cheap was checked before
    from layers import Calibration, check_sharing
    from passes import kept_seconds, peaks, run_recipe
    from transformers import AutoTokenizer, Gemma4ForConditionalGeneration
    from writing import write_checkpoint

    earlier_s = kept_seconds(work)
    model = Gemma4ForConditionalGeneration.from_pretrained(base, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [tokenize(tokenizer, row, options.max_seq_len) for row in rows]
    check_sharing(model, min(texts, key=len)[:PROOF_TOKENS])
    report(step="sharing", samples=len(texts), tokens=sum(map(len, texts)))
    run = Calibration(model, texts, device)
    records = run_recipe(model, json.dumps(recipe), run, work, report)
    report(step="write")
    facts = job | {
        "tokens": sum(map(len, texts)),
        "seconds": round(time.monotonic() - began + earlier_s, 1),
        "peak": largest([peaks(device), *(layer for step in records.values() for layer in step.values())]),
        "steps": records,
    }
    write_checkpoint(base, options.out, work, model, recipe, facts)
    report(done=str(options.out), seconds=facts["seconds"])


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder or hub id of a Gemma 4 checkpoint in BF16")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--calibration", required=True, help="JSONL file with `messages`, or id of a data set")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--max-seq-len", type=int, default=256)
    parser.add_argument("--skip-pruning", action="store_true")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("recipe.yaml"))
    return parser.parse_args()


def find_base(name: str) -> tuple[Path, str]:
    """Return the folder of a checkpoint and its commit, after a download if it is a hub id."""
    if Path(name).is_dir():
        return Path(name), ""
    from huggingface_hub import snapshot_download

    report(step="download", what=name)
    try:
        folder = Path(snapshot_download(name))
    except Exception as error:  # noqa: BLE001 - the client's many kinds; its own words say which
        stop(f"{name} is not a folder, and the hub's client says: {first_line(error)}", "name a folder or a hub id")
    return folder, folder.name


def check_room(base: Path, out: Path, device: Any) -> None:
    """Stop if disk or memory will not be enough; what an interrupted job has kept need not be written again."""
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    config = json.loads((base / "config.json").read_text()) if (base / "config.json").exists() else {}
    if not weights or config.get("model_type") != "gemma4" or "quantization_config" in config:
        got = "quantized" if "quantization_config" in config else config.get("model_type", "no config.json")
        stop(f"{base} is not an unquantized Gemma 4 (got {got})", "name the folder of a Gemma 4 checkpoint in BF16")
    text = config["text_config"]
    widest = max(text["intermediate_size"], text["hidden_size"])
    hessians = HESSIANS * 4 * widest**2
    # The result is smaller than the base; the work folder holds pruned matrices, their masks and packed ones.
    kept = sum(file.stat().st_size for file in kept_folder(out).glob("*.safetensors"))
    wanted = [
        ("disk", 2 * weights - kept, shutil.disk_usage(out.parent).free, f"make room on the disk of {out.parent}")
    ]
    host = weights + (3 << 30) + (0 if device.type == "cuda" else hessians)
    wanted.append(("memory", host, available_memory(), "stop other programs, or take a larger machine"))
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info()[0]
        wanted.append(("GPU memory", (2 << 30) + hessians, free, "stop what uses the GPU, or give --device cpu"))
    lacks = [
        (f"needs {need / 1e9:.1f} GB of {what} (got {free / 1e9:.1f} GB free)", remedy)
        for what, need, free, remedy in wanted
        if need > free
    ]
    if lacks:
        stop("; ".join(text for text, _ in lacks), "; ".join(remedy for _, remedy in lacks))


def available_memory() -> int:
    """Return the bytes of memory that programs may still take: the kernel's estimate, or what the cgroup leaves."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def read_rows(calibration: str, samples: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the first `samples` rows of the data in the seed's order, and where they come from."""
    path = Path(calibration)
    if path.is_file():
        content = path.read_bytes()
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        random.Random(seed).shuffle(rows)  # noqa: S311 - no secret
        rows, origin = rows[:samples], {"file": path.name, "sha256": digest(content)}
    else:
        from datasets import get_dataset_split_names, load_dataset

        name, _, split = calibration.partition("@")
        try:
            names = get_dataset_split_names(name)
            split = split or next((each for each in names if each.startswith("train")), names[0])
            data = load_dataset(name, split=split, streaming=True).shuffle(seed=seed, buffer_size=10_000)
            rows = [{"messages": row["messages"]} for row in data.take(samples)]
        except Exception as error:  # noqa: BLE001 - the library's many kinds; its own words say which
            stop(f"cannot read the data set {calibration}: {first_line(error)}", "name a JSONL file, or ID or ID@SPLIT")
        origin = {"dataset": name, "split": split, "sha256": digest(json.dumps(rows).encode())}
    if len(rows) < samples:
        stop(f"{calibration} has {len(rows)} rows (got --samples {samples})", "give more rows, or fewer --samples")
    return rows, origin


def load_recipe(path: Path, *, skip_pruning: bool) -> dict[str, Any]:
    """Return the recipe, without the stages that prune if they are to be skipped."""
    import yaml

    recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: stage for name, stage in recipe.items() if not (skip_pruning and "sparsity" in name)}


def work_folder(out: Path, job: dict[str, Any]) -> Path:
    """Return the folder of a job's kept layers, which lets it continue. Stops if it is another job's."""
    work = kept_folder(out)
    record = work / "job.json"
    if record.exists() and json.loads(record.read_text()) != job:
        stop(f"{work} has the layers of another job", "delete that folder, or name another OUT")
    work.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(job, indent=1))
    return work


def kept_folder(out: Path) -> Path:
    """Return where the layers that are done are kept until the result is whole."""
    return out.parent / f".{out.name}.work"


def tokenize(tokenizer: Any, row: dict[str, Any], length: int) -> list[int]:
    """Return a row as the chat template writes it, cut to `length` tokens."""
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    return list(tokenizer(text, truncation=True, max_length=length, add_special_tokens=False)["input_ids"])


def fingerprint(base: Path) -> dict[str, Any]:
    """Return what tells a base from another without reading all of it, and the licence that its card names."""
    sizes = {file.name: file.stat().st_size for file in sorted(base.glob("*.safetensors"))}
    card = (base / "README.md").read_text(encoding="utf-8") if (base / "README.md").exists() else ""
    licence = re.search(r"^license: *(\S+)", card, re.MULTILINE)
    return {
        "license": licence[1] if licence else "",
        "config_sha256": digest((base / "config.json").read_bytes()),
        "sizes": sizes,
    }


def largest(peaks: list[dict[str, Any]]) -> dict[str, float]:
    """Return the largest of each kind of memory."""
    kinds = [kind for kind in ("host_gb", "gpu_gb") if any(kind in each for each in peaks)]
    return {kind: max(each[kind] for each in peaks if kind in each) for kind in kinds}


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def first_line(error: Exception) -> str:
    """Return an exception's kind and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def report(**values: Any) -> None:
    """Print one line for servekit."""
    sys.stdout.write(f"{MARK}{json.dumps(values)}\n")
    sys.stdout.flush()


def stop(problem: str, remedy: str) -> NoReturn:
    """Report what keeps the job from being done, and end."""
    report(problem=problem, remedy=remedy)
    sys.exit(3)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS gives the same bits each time
    main()
