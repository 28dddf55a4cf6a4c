"""How long preflight takes: the demo checkpoint, and one of gemma-4-E4B's size whose shards are sparse files."""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from servekit.demo.build import build_demo_model
from servekit.demo.json_files import (
    CHAT_TEMPLATE,
    generation_config,
    model_config,
    processor_config,
    tokenizer_config,
)
from servekit.demo.shard_writer import Shard, index, shards
from servekit.demo.sizes import SIZES
from servekit.demo.tensor_list import tensors
from servekit.demo.vocabulary import tokenizer, vocabulary
from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts, inspect_checkpoint
from servekit.preflight.findings import Finding
from servekit.preflight.memory.capacity import plan_capacity
from servekit.preflight.memory.gpu_models import GIB, parse_gpu_model
from servekit.profile import resolve

VALUES: dict[str, Any] = {
    "gpu-memory-utilization": 0.9,
    "max-model-len": 20_000,
    "max-num-seqs": 1024,
    "max-num-batched-tokens": 4096,
    "quantization": "compressed-tensors",
    "kv-cache-dtype": "fp8_e4m3",
    "limit-mm-per-prompt": {"image": 3, "audio": 0, "video": 0},
}
NAME = "preflight"
ROUNDS = 5
ARGUMENTS = resolve(VALUES, target="cuda")
SHARD_BYTES = 4_000_000_000


def run(rounds: int | None) -> dict[str, Any]:
    """Build both checkpoints in a temporary folder and preflight them."""
    with tempfile.TemporaryDirectory(prefix="servekit-bench-") as folder:
        demo, sparse = Path(folder) / "demo", Path(folder) / "e4b"
        build_demo_model(demo)
        sparse.mkdir()
        write_sparse_checkpoint(sparse)
        return {"demo": measure(demo, rounds or ROUNDS), "e4b (sparse)": measure(sparse, rounds or ROUNDS)}


def write_sparse_checkpoint(folder: Path, *, quantized: bool = True) -> None:
    """Write a W4A16 or BF16 checkpoint of E4B's shapes: headers and other files are real, the weights are holes."""
    model = SIZES["e4b"]
    words = vocabulary(model.text.vocabulary)
    files = shards(tensors(model, quantized=quantized), limit_bytes=SHARD_BYTES)
    for shard in files:
        _write_sparse(folder / shard.filename, shard)
    for name, content in {
        "model.safetensors.index.json": index(files),
        "config.json": model_config(model, words.special, quantized=quantized),
        "generation_config.json": generation_config(words.special),
        "processor_config.json": processor_config(model.vision),
        "tokenizer.json": tokenizer(words),
        "tokenizer_config.json": tokenizer_config(model.text),
    }.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _write_sparse(path: Path, shard: Shard) -> None:
    entries, end = {}, 0
    for tensor in shard.tensors:
        begin, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Preflight the checkpoint `rounds` times; return times in seconds and sizes in bytes."""
    times = [_preflight(folder)[0] for _ in range(rounds)]
    _, facts, findings, weights_bytes, pool_tokens = _preflight(folder)
    return {
        "median_s": round(statistics.median(times), 4),
        "worst_s": round(max(times), 4),
        "stored_bytes": facts.stored_bytes,
        "tensors": len(facts.tensors),
        "weights_gib": round(weights_bytes / GIB, 3),
        "pool_tokens_l4": pool_tokens,
        "findings": [str(finding) for finding in findings],
    }


def _preflight(folder: Path) -> tuple[float, CheckpointFacts, tuple[Finding, ...], int, int]:
    begin = time.perf_counter()
    facts, findings = inspect_checkpoint(folder, arguments=ARGUMENTS)
    assert facts is not None
    plan, _ = plan_capacity(facts, ARGUMENTS, parse_gpu_model("l4"))
    assert plan is not None
    return time.perf_counter() - begin, facts, findings, plan.weights_bytes, plan.pool_tokens


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines."""
    return [f"{name}: " + ", ".join(f"{key} {value}" for key, value in each.items()) for name, each in result.items()]
