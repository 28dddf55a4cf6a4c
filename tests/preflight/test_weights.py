"""Weights on the GPU from the headers, against what vLLM logged for gemma-4-E4B's shapes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.preflight import run

from servekit.demo.json_files import model_config
from servekit.demo.sizes import SIZES
from servekit.demo.tensor_list import tensors
from servekit.demo.vocabulary import vocabulary
from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.contents.weight_sizes import WeightSizes, weights_on_gpu
from servekit.preflight.checkpoint.quantization.section import check_quantization
from servekit.preflight.checkpoint.quantization.weight_args import WeightArgs
from servekit.preflight.checkpoint.shard_header import Tensor
from servekit.preflight.checkpoint.text_config import parse_text_config
from servekit.preflight.memory.gpu_models import GIB, GpuModel
from servekit.preflight.memory.memory_plan import plan_memory
from servekit.profile import EngineArguments

MEANT_GIB = 20.2
LIMITS = {"image": 3, "audio": 0, "video": 0}


def sizes(*, quantized: bool, without: str = "nothing", **limits: int) -> WeightSizes:
    """The sizes of the demo generator's e4b, which has the shapes of the measured model."""
    model = SIZES["e4b"]
    config = model_config(model, vocabulary(model.text.vocabulary).special, quantized=quantized)
    stored = [
        Tensor(tensor.name, tensor.dtype, tuple(tensor.shape), 0, tensor.nbytes, Path("shard"))
        for tensor in tensors(model, quantized=quantized)
        if without not in tensor.name
    ]
    declared = ModelConfig("Gemma4ForConditionalGeneration", None, "bfloat16")
    declared = replace(declared, quantization=_section(config, "quantization_config"))
    scheme, findings = check_quantization(declared, None, "cuda")
    assert not findings
    return weights_on_gpu(
        stored,
        parse_text_config(_section(config, "text_config") or {}),
        scheme,
        dtype_bytes=2,
        limits=LIMITS | limits,
        max_num_batched_tokens=4096,
    )


def _section(config: Any, key: str) -> Any:
    return json.loads(json.dumps(config)).get(key)


@pytest.mark.parametrize(("quantized", "measured_gib"), [(True, 9.18), (False, 14.62)])
def test_weights_agree_with_the_measured_engine(*, quantized: bool, measured_gib: float) -> None:
    """The estimate is within 1 % of what vLLM 0.20.2 logged on CUDA."""
    assert sizes(quantized=quantized).total_bytes / GIB == pytest.approx(measured_gib, rel=0.01)


@pytest.mark.parametrize(
    ("quantized", "budget_gib", "available_gib"),
    [
        (True, MEANT_GIB * 79.18 / 79.65, 6.36),
        (False, MEANT_GIB * 79.18 / 79.65, 0.94),
        (True, MEANT_GIB, 6.48),
        (False, MEANT_GIB, 1.06),
    ],
)
def test_plan_from_headers_alone_agrees_with_the_measured_engines(
    arguments: EngineArguments, *, quantized: bool, budget_gib: float, available_gib: float
) -> None:
    """With the weights estimated too, the rest for the KV cache is within 2 % of what vLLM logged on two hosts.

    On the first, the share was 20.2 GiB of NVML's 79.65 GiB, and vLLM applied it to CUDA's 79.18 GiB.
    """
    model = SIZES["e4b"]
    config = model_config(model, vocabulary(model.text.vocabulary).special, quantized=quantized)
    text = parse_text_config(_section(config, "text_config"))
    dtype = "fp8_e4m3" if quantized else "auto"
    budget = GpuModel("H100", 80 * GIB, round(budget_gib / 0.9 * GIB))
    plan = plan_memory(text, sizes(quantized=quantized).total_bytes, arguments, budget, kv_cache_dtype=dtype)
    assert plan.available_bytes / GIB == pytest.approx(available_gib, rel=0.02)


def test_towers_count_only_if_used() -> None:
    """A tower is loaded only if one of its modalities is allowed."""
    used = sizes(quantized=True)
    assert used.vision_bytes > 0
    assert used.audio_bytes == 0
    assert sizes(quantized=True, image=0).vision_bytes == 0
    assert sizes(quantized=True, image=0, video=1).vision_bytes == used.vision_bytes
    assert sizes(quantized=True, audio=1).audio_bytes > 0


@pytest.mark.parametrize("quantized", [True, False])
def test_dropped_projections_are_allocated_all_the_same(*, quantized: bool) -> None:
    """Weights of a KV-shared layer that transformers drops still take memory in the engine."""
    whole = sizes(quantized=quantized).total_bytes
    dropped = sizes(quantized=quantized, without="layers.30.self_attn.k_proj").total_bytes
    assert dropped == pytest.approx(whole, abs=16)  # without the two integers of weight_shape


def test_scheme_counts_scales() -> None:
    """Groups are counted over the inputs, and a per-channel scheme has one."""
    assert WeightArgs(num_bits=4, group_size=128).groups(2560) == 20
    assert WeightArgs(num_bits=8, strategy="channel").groups(2560) == 1


def test_ten_gigabytes_are_judged_from_their_headers() -> None:
    """A checkpoint of E4B's real size, in sparse files, has no findings, and its weights match the measured ones."""
    result = run(1)["e4b (sparse)"]
    assert result["stored_bytes"] > 9_000_000_000
    assert result["findings"] == []
    assert result["weights_gib"] == pytest.approx(9.18, rel=0.01)


def test_a_folder_of_models_is_not_searched(patient: Any, tmp_path: Path) -> None:
    """A folder above checkpoints, such as the root of a disk, is not searched: one checkpoint in it is named."""
    (tmp_path / "models" / "old").mkdir(parents=True)
    (tmp_path / "models" / "old" / "consolidated.safetensors").touch()
    patient.folder.rename(tmp_path / "models" / "mine")
    patient.folder = tmp_path / "models"
    _, findings = patient.inspect()
    assert [finding.name for finding in findings] == ["config-missing", "weights-missing"]
    assert findings[0].remedy == f"give the folder of a checkpoint, such as {tmp_path / 'models' / 'mine'}"
