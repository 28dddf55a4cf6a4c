"""Where the per-layer embeddings go, and FP8 activations: decided from values, before anything starts."""

from dataclasses import replace
from typing import Any

import pytest

from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts
from servekit.preflight.fp8_activations import check_activations
from servekit.preflight.memory.capacity import plan_capacity
from servekit.preflight.memory.default_model import default_checkpoint
from servekit.preflight.memory.gpu_models import parse_gpu_model
from servekit.preflight.memory.memory_report import render_plan
from servekit.preflight.memory.placement import HOST_BYTES, TABLE_BYTES, Placement, place_embeddings
from servekit.profile import EngineArguments, resolve
from servekit.settings import Embeddings, Target


def placed(
    setting: str, gpu: str = "l4", target: Target = Target.CUDA, host: tuple[int, int] = (0, 0), **values: Any
) -> Placement:
    """Return where the table goes on this GPU, with these engine arguments."""
    return place_embeddings(
        Embeddings(setting), target, parse_gpu_model(gpu), resolve(values, target=target), host=host
    )


@pytest.mark.parametrize(
    ("setting", "gpu", "wanted"),
    [
        ("auto", "l4", "host or gpu"),
        ("auto", "a100-40", "host or gpu"),
        ("auto", "l40s", "gpu"),
        ("auto", "h100", "gpu"),
        ("host", "h100", "host"),
        ("gpu", "l4", "gpu"),
    ],
)
def test_a_small_gpu_leaves_the_table_to_the_host(setting: str, gpu: str, wanted: str) -> None:
    """`auto` is the host's memory below 40 GiB; a setting decides otherwise, and has nothing to report."""
    found = placed(setting, gpu)
    assert (found.wanted, found.findings) == (wanted, ())


@pytest.mark.parametrize(
    "case", [{"host": (HOST_BYTES - 1,) * 2}, {"load-format": "tensorizer"}], ids=["memory", "loader"]
)
def test_where_the_host_cannot_hold_it(case: dict[str, Any]) -> None:
    """With too little memory, or a loader with its own tensors, `auto` warns and `host` does not start."""
    automatic, demanded = placed("auto", **case), placed("host", **case)
    assert (automatic.wanted, demanded.wanted) == ("gpu", "gpu")
    assert [(each.name, str(each.severity)) for each in automatic.findings] == [("memory-embeddings", "warning")]
    assert [(each.name, str(each.severity)) for each in demanded.findings] == [("memory-embeddings", "error")]
    assert placed("host", host=(HOST_BYTES, HOST_BYTES)).wanted == "host"


def test_a_plan_beside_a_running_endpoint_says_so() -> None:
    """Where the host's memory would do if nothing else ran, the finding says that the plan is for this moment."""
    beside, small = placed("auto", host=(2 * HOST_BYTES, HOST_BYTES - 1)), placed("auto", host=(HOST_BYTES - 1,) * 2)
    assert "an endpoint that runs already" in beside.findings[0].remedy
    assert "available now" in beside.findings[0].message
    assert "ENDPOINT_MEMORY" in small.findings[0].remedy


def test_the_cpu_engine_has_one_memory() -> None:
    """On the CPU the setting does nothing, and a given one is told so."""
    assert placed("auto", target=Target.CPU) == Placement("cpu")
    found = placed("host", target=Target.CPU)
    assert found.memory == "cpu"
    assert [(each.name, str(each.severity)) for each in found.findings] == [("memory-embeddings", "note")]


def test_the_plan_counts_the_table_where_it_is(arguments: EngineArguments) -> None:
    """The table's 5.25 GiB are the host's, and the KV cache of an L4 is at least 1.8 times as large."""
    facts, l4 = default_checkpoint(), parse_gpu_model("l4")
    on_gpu, _ = plan_capacity(facts, arguments, l4)
    on_host, _ = plan_capacity(facts, arguments, l4, embeddings_on_host=True)
    assert on_gpu is not None
    assert on_host is not None
    assert (on_gpu.pinned_bytes, on_host.pinned_bytes) == (0, TABLE_BYTES)
    assert on_host.weights_bytes == on_gpu.weights_bytes - TABLE_BYTES
    assert on_host.available_bytes == on_gpu.available_bytes + TABLE_BYTES
    assert on_host.pool_tokens >= 1.8 * on_gpu.pool_tokens
    assert "pinned in the host's memory" in render_plan(on_host)
    assert "pinned" not in render_plan(on_gpu)


def test_a_model_without_the_table_pins_nothing(patient: Any, arguments: EngineArguments) -> None:
    """Only the table moves, and the CPU engine's plan never counts one apart."""
    facts, _ = patient.inspect()
    assert isinstance(facts, CheckpointFacts)
    kept = tuple(each for each in facts.tensors if "embed_tokens_per_layer" not in each.name)
    bare, _ = plan_capacity(replace(facts, tensors=kept), arguments, parse_gpu_model("l4"), embeddings_on_host=True)
    on_cpu, _ = plan_capacity(facts, arguments, None, embeddings_on_host=True)
    assert bare is not None
    assert on_cpu is not None
    assert (bare.pinned_bytes, on_cpu.pinned_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("target", "gpu", "quantization", "expected"),
    [
        (Target.CUDA, "l4", "compressed-tensors", "warning"),
        (Target.CUDA, "22GiB", "compressed-tensors", "warning"),
        (Target.CUDA, "h100", "compressed-tensors", "error"),
        (Target.CUDA, "a10", "compressed-tensors", "error"),
        (Target.CUDA, "l4", None, "error"),
        (Target.CPU, "l4", "compressed-tensors", "error"),
    ],
)
def test_fp8_activations(target: Target, gpu: str, quantization: str | None, expected: str) -> None:
    """FP8 activations stop a start where vLLM has no kernel for them, and are a warning where it has."""
    (found,) = check_activations(target, parse_gpu_model(gpu), quantization)
    assert (found.name, str(found.severity)) == ("fp8-activations", expected)
