"""The rules for schemes against vLLM 0.20.2's own functions, which judge the same arguments, layers and kernels."""

import itertools
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.checkpoint.quantization.kernels import Device, kernel_objections
from servekit.preflight.checkpoint.quantization.scheme import WeightScheme
from servekit.preflight.checkpoint.quantization.weight_args import WeightArgs, read_weight_args

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

GROUP: dict[str, Any] = {"num_bits": 4, "group_size": 128, "strategy": "group"}
VALUES: dict[str, list[Any]] = {
    "num_bits": [4, 8, 2, "4", 4.0, 4.5, "four", None],
    "type": ["int", "float", "INT", "uint", None],
    "symmetric": [True, False, "true", None],
    "group_size": [128, 32, -1, 0, -2, None, "128"],
    "strategy": ["group", "channel", "tensor", "block", "token", "tensor_group", "attn_head", "Group", "x", None],
    "dynamic": [True, False, "local", "Local", "x", None],
    "actorder": [None, "static", "group", "weight", "dynamic", "GROUP", True, False, "x"],
    "block_structure": [None, [2, 4], "2x4", [2], "x"],
    "scale_dtype": [None, "bfloat16", "torch.float32", "nosuch"],
    "observer": [None, "minmax", 3],
    "observer_kwargs": [{}, {"a": 1}, None],
    "bits": [4],
}
NAMES = {
    "layers.0.self_attn.qkv_proj": ("self_attn.q_proj", "QKVParallelLinear"),
    "layers.0.mlp.gate_up_proj": ("mlp.up_proj", "MergedColumnParallelLinear"),
    "layers.0.mlp.down_proj": ("mlp.down_proj", "RowParallelLinear"),
    "layers.0.per_layer_input_gate": ("per_layer_input_gate", "ReplicatedLinear"),
}
ENTRIES = [
    "Linear",
    "linear",
    "Parallel",
    "RowParallelLinear",
    "re:.*",
    "re:.*self_attn.*",
    "re:.*[qkv]_proj$",
    "re:.*q_proj$",
    "re:.*qkv_proj$",
    "re:.*mlp.*",
    "re:.*(gate|up)_proj$",
    "re:.*per_layer.*",
    "re:model.language_model.*",
    "re:language_model.*",
    "model.language_model.layers.0.mlp.down_proj",
    "model.language_model.layers.0.mlp.up_proj",
    "model.language_model.layers.0.self_attn.qkv_proj",
    "language_model.model.layers.0.mlp.gate_up_proj",
    "lm_head",
]
ORDERS = (None, "group")
SIZES = (-1, 16, 32, 64, 128, 256)
KERNELS: list[dict[str, Any]] = [
    {"num_bits": bits, "symmetric": symmetric, "group_size": size, "actorder": order}
    for bits, symmetric, size, order in itertools.product((4, 8), (True, False), SIZES, ORDERS)
    if size > 0 or not order
]
SHAPES = [(256, 256), (512, 128), (64, 512), (96, 512), (80, 256), (256, 288), (32, 32), (128, 64)]
DEVICES = [(None, "bfloat16"), *itertools.product(((7, 5), (8, 0), (8, 9), (9, 0)), ("bfloat16", "float16"))]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Any]]:
    """Arguments with one to three keys altered, targets with ignore lists, and layers of weights on devices."""
    chance = random.Random(0)
    args = [GROUP | {key: value} for key, values in VALUES.items() for value in values]
    args += [GROUP | {key: chance.choice(VALUES[key]) for key in chance.sample([*VALUES], 3)} for _ in range(1500)]
    lists = [
        [chance.sample(ENTRIES, chance.randint(1, 3)), chance.sample(ENTRIES, chance.randint(0, 3))] for _ in range(600)
    ]
    kernels = [
        [weights, *shape, capability, dtype]
        for weights, shape, (capability, dtype) in itertools.product(KERNELS, SHAPES, DEVICES)
        if weights["group_size"] < 0 or shape[1] % weights["group_size"] == 0
    ]
    return {"args": args, "lists": lists, "kernels": kernels}


@pytest.fixture(scope="module")
def engine_says(root: Path, drawn: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What vLLM's functions say about all of it."""
    python = root / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs .venv-engine")
    names = [(f"language_model.model.{name}", kind) for name, (_, kind) in NAMES.items()]
    program = Path(__file__).with_name("engine_rules.py")
    answer = subprocess.run(
        [python, program], input=json.dumps(drawn | {"names": names}), text=True, capture_output=True, check=True
    )
    found: dict[str, list[Any]] = json.loads(answer.stdout.splitlines()[-1])
    return found


def differing(drawn: list[Any], said: list[Any], ours: Callable[[Any], Any]) -> list[Any]:
    """Return what the two judge differently."""
    assert len(drawn) == len(said)
    return [(each, theirs) for each, theirs in zip(drawn, said, strict=True) if ours(each) != theirs]


def test_arguments_are_read_as_compressed_tensors_reads_them(drawn: Any, engine_says: Any) -> None:
    """The same arguments of weights are accepted, of 1,500 and more."""
    assert differing(drawn["args"], engine_says["args"], lambda raw: not read_weight_args(raw)[1]) == []
    assert 100 < sum(engine_says["args"]) < len(drawn["args"]) - 100


def test_layers_are_matched_as_vllm_matches_them(drawn: Any, engine_says: Any) -> None:
    """Each layer gets the same target, is ignored, or is split, for 600 lists of targets and of what to ignore."""

    def ours(lists: tuple[list[str], list[str]]) -> list[str]:
        scheme = WeightScheme(dict.fromkeys(lists[0], WeightArgs(**GROUP)), tuple(lists[1]))
        return [
            _judged(scheme, part if part.startswith("layers") else f"layers.0.{part}") for part, _ in NAMES.values()
        ]

    assert differing(drawn["lists"], engine_says["layers"], ours) == []
    assert {answer for answers in engine_says["layers"] for answer in answers} >= {"ignored", "split", "none", "Linear"}


def _judged(scheme: WeightScheme, module: str) -> str:
    layer = scheme.layer(module)
    if layer.split:
        return "split"
    return "ignored" if layer.ignored else layer.target or "none"


def test_kernels_are_those_that_vllm_finds(drawn: Any, engine_says: Any) -> None:
    """The same layers have a kernel, on the CPU and on GPUs of four compute capabilities."""

    def ours(question: Any) -> bool:
        weights, outputs, inputs, capability, dtype = question
        device = Device(tuple(capability) if capability else None, dtype)
        return not kernel_objections(WeightArgs(**weights), outputs, inputs, device)

    assert differing(drawn["kernels"], engine_says["kernels"], ours) == []
    assert 100 < sum(engine_says["kernels"]) < len(drawn["kernels"]) - 100
