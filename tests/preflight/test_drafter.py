"""The model of speculative-config: found, known to vLLM 0.20.2, and counted in the memory plan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.drafter import inspect_drafter
from servekit.preflight.findings import Finding
from servekit.preflight.memory.capacity import plan_capacity
from servekit.preflight.memory.gpu_models import parse_gpu_model
from servekit.preflight.start import Start
from servekit.profile import EngineArguments
from servekit.settings import Target
from tests.preflight.conftest import write_shard


def make_drafter(folder: Path, **config: Any) -> str:
    """Write a drafter of 4,096 bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_shard(folder / "model.safetensors", {"fc.weight": ("BF16", [2, 1024], b"\0" * 4096)})
    return str(folder)


def inspect(arguments: EngineArguments, **config: Any) -> tuple[int, list[Finding]]:
    """Inspect the drafter of a speculative-config."""
    return inspect_drafter(a_start(arguments, config), {"HF_HUB_CACHE": "/nonexistent"})


def a_start(arguments: EngineArguments, config: dict[str, Any] | None) -> Start:
    """Return the start of a model in a folder with this speculative-config."""
    return Start(
        target=Target.CUDA,
        profile=Path("profile.yaml"),
        model="/models/m",
        values={},
        arguments=replace(arguments, speculative_config=config),
        addresses={},
        cache_dir=Path("/nonexistent"),
    )


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        ("eagle", "LlamaForCausalLM"),
        ("eagle", "EagleLlamaForCausalLM"),
        ("eagle3", "LlamaForCausalLM"),
        ("eagle3", "LlamaForCausalLMEagle3"),
        ("dflash", "DFlashDraftModel"),
        ("medusa", "MedusaModel"),
        ("draft_model", "Gemma4ForCausalLM"),
    ],
)
def test_a_known_drafter_is_counted(arguments: EngineArguments, tmp_path: Path, method: str, architecture: str) -> None:
    """The class that vLLM derives from method and architecture is known; the plan counts the weights and says so."""
    model = make_drafter(tmp_path / "drafter", architectures=[architecture])
    size, (finding,) = inspect(arguments, model=model, method=method)
    assert (size, finding.name, str(finding.severity)) == (4096, "memory-drafter", "note")


@pytest.mark.parametrize(
    ("method", "config", "told"),
    [
        ("eagle3", {"architectures": ["Gemma4AssistantForCausalLM"]}, "'Eagle3Gemma4AssistantForCausalLM'"),
        ("eagle", {"architectures": ["Gemma4ForCausalLM"]}, "'EagleGemma4ForCausalLM'"),
        ("draft_model", {"architectures": ["Gemma4AssistantForCausalLM"]}, "'Gemma4AssistantForCausalLM'"),
        ("draft_model", {}, "''"),
    ],
)
def test_an_unknown_drafter_is_refused(
    arguments: EngineArguments, tmp_path: Path, method: str, config: dict[str, Any], told: str
) -> None:
    """A drafter whose class vLLM 0.20.2 does not have is an error at its config.json."""
    model = make_drafter(tmp_path / "drafter", **config)
    _, findings = inspect(arguments, model=model, method=method)
    (error,) = [finding for finding in findings if finding.severity == "error"]
    assert (error.name, error.file) == ("architecture-unknown", f"{model}/config.json")
    assert f"vLLM 0.20.2 has no drafter {told}" in error.message


def test_other_formats_are_left_to_vllm(arguments: EngineArguments, tmp_path: Path) -> None:
    """vLLM translates the format of speculators itself, and gives a medusa without architecture its class."""
    model = make_drafter(tmp_path / "a", speculators_model_type="eagle3", architectures=["Eagle3Speculator"])
    assert [finding.name for finding in inspect(arguments, model=model, method="eagle3")[1]] == ["memory-drafter"]
    model = make_drafter(tmp_path / "b", model_type="medusa")
    assert [finding.name for finding in inspect(arguments, model=model, method="medusa")[1]] == ["memory-drafter"]


def test_a_drafter_without_weights_needs_no_model(arguments: EngineArguments) -> None:
    """Without speculative-config, and with n-grams, there is nothing to look at."""
    assert inspect_drafter(a_start(arguments, None), {}) == (0, [])
    assert inspect(arguments, method="ngram", num_speculative_tokens=2) == (0, [])


def test_a_drafter_that_is_not_here(arguments: EngineArguments, tmp_path: Path) -> None:
    """A missing drafter is an error where nothing can be downloaded; a damaged one has its own findings."""
    _, findings = inspect(arguments, model="owner/head-eagle3")
    assert [finding.name for finding in findings] == ["hub-offline", "memory-drafter"]
    _, findings = inspect(arguments, model="/nowhere/eagle3")
    assert [finding.name for finding in findings] == ["model-missing", "memory-drafter"]
    model = make_drafter(tmp_path / "drafter", architectures=["LlamaForCausalLM"])
    (Path(model) / "model.safetensors").unlink()
    assert "weights-missing" in [finding.name for finding in inspect(arguments, model=model, method="eagle")[1]]
    (Path(model) / "config.json").write_text("{")
    assert "config-invalid" in [finding.name for finding in inspect(arguments, model=model, method="eagle")[1]]


def test_the_plan_holds_the_drafter(patient: Any, arguments: EngineArguments) -> None:
    """The drafter's weights leave that much less for the KV cache."""
    facts, _ = patient.inspect()
    plain, _ = plan_capacity(facts, arguments, parse_gpu_model("l4"))
    more, _ = plan_capacity(facts, arguments, parse_gpu_model("l4"), drafter_bytes=4096)
    assert plain is not None
    assert more is not None
    assert (more.weights_bytes - plain.weights_bytes, plain.available_bytes - more.available_bytes) == (4096, 4096)


@pytest.mark.parametrize(
    "changes",
    [
        {"offload_backend": "prefetch"},
        {"offload_group_size": 4},
        {"cpu_offload_gb": 1.0, "cpu_offload_params": ["mlp"]},
    ],
)
def test_chosen_layers_in_the_hosts_memory_are_not_planned(
    patient: Any, arguments: EngineArguments, changes: dict[str, Any]
) -> None:
    """Where the profile chooses which weights leave the GPU, the plan gives a warning instead of a wrong figure."""
    facts, _ = patient.inspect()
    plan, (finding,) = plan_capacity(facts, replace(arguments, **changes), parse_gpu_model("l4"))
    assert (plan, finding.name, str(finding.severity)) == (None, "memory-unplanned", "warning")
