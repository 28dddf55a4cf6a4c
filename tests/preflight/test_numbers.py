"""The default profile's plan for an L4: the memory that NVML and CUDA show, and the result, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.memory.default_model import default_checkpoint
from servekit.preflight.memory.gpu_models import GIB, GPU_MODELS

PROGRAM = Path(sys.executable).with_name("servekit")


@pytest.fixture(scope="module")
def plan(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The memory plan of the default model and profile for an L4, on a host without a network."""
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path_factory.mktemp("hub"))}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")}
    output = subprocess.check_output([PROGRAM, "plan", "--gpu", "l4", "--format", "json"], cwd=root, env=clean | own)
    memory: dict[str, Any] = json.loads(output)["memory"]
    return memory


def test_an_l4_has_what_cuda_shows(plan: dict[str, Any]) -> None:
    """NVML shows 22.5 GiB, CUDA 22.03, of which vLLM takes 0.9: the budget is 19.83 GiB."""
    gpu = GPU_MODELS["l4"]
    assert f"{gpu.memory_bytes / GIB:.1f}" == "22.5"
    assert f"{gpu.usable_bytes / GIB:.2f}" == f"{plan['total_bytes'] / GIB:.2f}" == "22.03"
    assert f"{plan['budget_bytes'] / GIB:.2f}" == "19.83"


def test_the_default_model_is_planned_from_its_known_shapes(plan: dict[str, Any]) -> None:
    """Its weights are those that vLLM logged for the same shapes, on the GPU and in the host's memory together."""
    assert (plan["weights_bytes"] + plan["pinned_bytes"]) / GIB == pytest.approx(9.18, rel=0.01)
    assert plan["full_requests"] > 40
    assert len(default_checkpoint().tensors) > 2000
