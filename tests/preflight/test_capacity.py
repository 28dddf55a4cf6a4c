"""From a checkpoint to its memory plan, and what prevents one."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts
from servekit.preflight.memory.capacity import plan_capacity
from servekit.preflight.memory.gpu_models import GIB, parse_gpu_model
from servekit.profile import EngineArguments, resolve

VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 10**30, 1.5, "", "x", [], [[]], {}, {"a": []}, "sliding_attention", 2**31]
)


@pytest.fixture
def facts(patient: Any) -> CheckpointFacts:
    """The demo checkpoint's facts."""
    found, _ = patient.inspect()
    assert isinstance(found, CheckpointFacts)
    return found


def test_demo_is_planned_for_a_gpu_and_for_the_cpu(facts: CheckpointFacts, arguments: EngineArguments) -> None:
    """One call plans for a GPU that this host lacks and for the CPU engine."""
    on_gpu, findings = plan_capacity(facts, arguments, parse_gpu_model("l4"))
    assert on_gpu is not None
    assert on_gpu.device == "L4"
    assert [finding.name for finding in findings] == ["memory-bottleneck"]
    on_cpu, _ = plan_capacity(facts, arguments, None, kv_space_gib=2)
    assert on_cpu is not None
    assert on_cpu.available_bytes == 2 << 30


def test_declared_cache_format_is_planned_with(patient: Any, arguments: EngineArguments) -> None:
    """kv_cache_scheme makes the cache FP8 regardless of the profile."""
    scheme = {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "tensor"}
    patient.config(lambda config: config["quantization_config"].update(kv_cache_scheme=scheme))
    found, _ = patient.inspect()
    auto = replace(arguments, kv_cache_dtype="auto")
    forced, _ = plan_capacity(found, auto, parse_gpu_model("l4"))
    wanted, _ = plan_capacity(found, arguments, parse_gpu_model("l4"))
    assert forced == wanted


def test_offloaded_weights_are_not_on_the_gpu(facts: CheckpointFacts, arguments: EngineArguments) -> None:
    """cpu-offload-gb keeps only weights of decoder layers in the host's memory."""
    l4 = parse_gpu_model("l4")
    plain, some, most = (
        plan_capacity(facts, replace(arguments, cpu_offload_gb=gib), l4)[0] for gib in (0, 100_000 / GIB, 99)
    )
    weights = facts.weights(arguments)
    assert weights is not None
    assert plain is not None
    assert some is not None
    assert most is not None
    assert some.weights_bytes == plain.weights_bytes - 100_000
    assert some.available_bytes == plain.available_bytes + 100_000
    assert most.weights_bytes == plain.weights_bytes - weights.layers_bytes


def test_unknown_cache_format_is_not_planned(facts: CheckpointFacts, arguments: EngineArguments) -> None:
    """An unknown cache format gives a warning instead of a guess."""
    plan, (finding,) = plan_capacity(facts, replace(arguments, kv_cache_dtype="nvfp4"), parse_gpu_model("l4"))
    assert (plan, finding.name, str(finding.severity)) == (None, "memory-unplanned", "warning")


def test_impossible_layout_is_an_error(patient: Any, arguments: EngineArguments) -> None:
    """Head sizes that vLLM cannot lay out are an error."""
    patient.config(lambda config: config["text_config"].update(head_dim=192))
    found, _ = patient.inspect()
    plan, (finding,) = plan_capacity(found, arguments, parse_gpu_model("l4"))
    assert (plan, finding.name, str(finding.severity)) == (None, "memory-layout", "error")


def test_other_models_are_not_planned(patient: Any, arguments: EngineArguments) -> None:
    """A model that vLLM supports but the plan does not is reported as unplanned."""
    patient.config(lambda config: config.update(architectures=["LlamaForCausalLM"], model_type="llama"))
    found, findings = patient.inspect()
    assert "architecture-unplanned" in [finding.name for finding in findings]
    plan, (finding,) = plan_capacity(found, arguments, parse_gpu_model("l4"))
    assert (plan, finding.name) == (None, "memory-unplanned")


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, (999, 999, 999)),
        ({"limit-mm-per-prompt": {"image": 3}}, (3, 999, 999)),
        ({"limit-mm-per-prompt": {"image": 2, "audio": 0, "video": 0}}, (2, 0, 0)),
        ({"limit-mm-per-prompt": {"image": 0, "audio": 0, "video": 0}}, (0, 0, 0)),
    ],
)
def test_limits_are_read_as_vllm_does(given: dict[str, Any], limits: tuple[int, int, int]) -> None:
    """A modality that is not listed has the limit 999."""
    counts = resolve(given, target="cuda").limit_mm_per_prompt
    assert tuple(counts[modality] for modality in ("image", "audio", "video")) == limits


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    if isinstance(value, dict):
        return [path, *(place for key in value for place in paths_of(value[key], (*path, key)))]
    if isinstance(value, list):
        return [path, *(place for index, item in enumerate(value) for place in paths_of(item, (*path, index)))]
    return [path]


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_any_configuration_is_judged(demo: Path, patient: Any, arguments: EngineArguments, data: st.DataObject) -> None:
    """For any value at any place of config.json, preflight and plan return findings."""
    config = json.loads((demo / "config.json").read_text())
    places = [place for place in paths_of(config) if place]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
        changed = copy.deepcopy(config)
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = data.draw(VALUES)
        (patient.folder / "config.json").write_text(json.dumps(changed))
        found, _ = patient.inspect()
        if found:
            plan_capacity(found, arguments, parse_gpu_model("l4"))
