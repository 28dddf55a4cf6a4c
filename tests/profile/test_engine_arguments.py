"""The engine's arguments, typed and completed with vLLM's defaults."""

import ast
from pathlib import Path
from typing import Any

import pytest

from servekit.profile import EngineArguments, resolve
from servekit.profile.argument_table import engine_arguments

GIB = 1 << 30


def test_what_is_left_out_is_vllms_default_and_known_as_such() -> None:
    """Arguments that the profile omits have vLLM's defaults, and `given` has only those of the profile."""
    arguments = resolve({"max-model-len": 20_000, "quantization": "compressed-tensors"}, target="cuda")
    assert arguments.given == {"max_model_len", "quantization"}
    assert (arguments.max_model_len, arguments.quantization) == (20_000, "compressed-tensors")
    assert (arguments.gpu_memory_utilization, arguments.kv_cache_dtype, arguments.dtype) == (0.92, "auto", "auto")
    assert (arguments.enable_prefix_caching, arguments.enable_chunked_prefill, arguments.enforce_eager) == (1, 1, 0)
    assert resolve({}, target="cuda").max_model_len is None


@pytest.mark.parametrize(
    ("target", "gpu", "batch"),
    [
        ("cpu", ("", 0), (128, 2048)),
        ("cuda", ("L4", 22 * GIB), (256, 2048)),
        ("cuda", ("NVIDIA H100 80GB HBM3", 79 * GIB), (1024, 8192)),
        ("cuda", ("NVIDIA A100-SXM4-80GB", 79 * GIB), (256, 2048)),
    ],
)
def test_the_batch_is_that_of_the_target(target: str, gpu: tuple[str, int], batch: tuple[int, int]) -> None:
    """vLLM's default batch depends on the GPU's memory, and is smaller on an A100 and on the CPU."""
    arguments = resolve({}, target=target, gpu_name=gpu[0], gpu_bytes=gpu[1])
    assert (arguments.max_num_seqs, arguments.max_num_batched_tokens) == batch


@pytest.mark.parametrize(
    ("values", "batch"),
    [
        ({"max-num-batched-tokens": 100}, (100, 100)),
        ({"max-num-seqs": 3, "max-model-len": 50}, (3, 150)),
        ({"max-model-len": 20_000, "enable-chunked-prefill": False}, (256, 20_000)),
        ({"performance-mode": "throughput"}, (512, 4096)),
        ({"performance-mode": "throughput", "max-num-seqs": 7}, (7, 4096)),
    ],
)
def test_the_batch_follows_what_else_is_set(values: dict[str, Any], batch: tuple[int, int]) -> None:
    """vLLM's defaults depend on the other arguments."""
    arguments = resolve(values, target="cuda")
    assert (arguments.max_num_seqs, arguments.max_num_batched_tokens) == batch


def test_the_contract_is_what_this_run_sets() -> None:
    """Each key of the contract has the run's value, or None if the engine may use any."""
    assert resolve({"max-num-seqs": 7, "limit-mm-per-prompt": {"image": 2}}, target="cuda").contract == {
        "kv-cache-dtype": None,
        "quantization": None,
        "limit-mm-per-prompt": {"image": 2},
        "max-num-seqs": 7,
    }


def test_nobody_else_looks_an_argument_up_by_its_dashed_name(root: Path) -> None:
    """Outside servekit.profile no source subscripts with an argument's dashed name, or passes one to get or pop."""
    dashed = {name for name in engine_arguments() if "-" in name}
    source = root / "src" / "servekit"
    found = []
    for path in sorted(source.rglob("*.py")):
        if path.is_relative_to(source / "profile"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript):
                keys = [node.slice]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("get", "pop", "setdefault"):
                keys = node.args[:1]
            else:
                continue
            found += [(path.name, key.value) for key in keys if isinstance(key, ast.Constant) and key.value in dashed]
    assert found == []


def test_the_arguments_are_vllms() -> None:
    """Every field is the name of a vLLM argument."""
    names = set(EngineArguments.__dataclass_fields__) - {"given"}
    assert {name.replace("_", "-") for name in names} <= set(engine_arguments())
