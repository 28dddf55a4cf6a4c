"""Penalties and logprobs, a few rows at a time: the results are vLLM's, and the bytes are those of the memory plan."""

from typing import Any

import pytest

from servekit.preflight.memory import shortages
from servekit.serve.guard.inside.servekit_guard.core.slices import ROWS_AT_ONCE
from tests.conftest import ROOT
from tests.guard.test_inside_vllm import run_inside

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def sliced() -> Any:
    """What vLLM's own functions and the sliced ones give, in the installed vLLM."""
    return run_inside((ROOT / "tests" / "guard" / "sliced.py").read_text())


@pytest.mark.advisory("CVE-2026-105922", "vllm#5907", "vllm#38830")
def test_results_in_slices_are_those_of_the_whole_batch(sliced: Any) -> None:
    """Penalties and logprobs are equal bit for bit, for batches below, at and above a slice's size."""
    assert [[name for name, same in each.items() if not same] for each in sliced["equal"]] == [[]] * 4


def test_penalties_read_prompts_of_rows_with_penalties_only(sliced: Any) -> None:
    """The tensor is as wide as the longest of those, the other rows are padding, and the batch is unchanged."""
    padding = [1024] * 4
    assert sliced["prompts"] == [padding, [7] * 4, padding]
    assert sliced["lengths_kept"]
    assert sliced["without_penalties"]


def test_the_plans_bytes_are_those_of_vllms_tensors(sliced: Any) -> None:
    """PyTorch's allocator counts, for vLLM's own functions, exactly what the memory plan says of a row and word."""
    logits = sliced["rows"] * sliced["words"]
    whole = {name: size / logits for name, size in sliced["whole"].items()}
    assert whole["greedy"] == pytest.approx(shortages.LOGITS_BYTES, rel=0.01)
    assert whole["sampled"] == pytest.approx(shortages.SAMPLED_BYTES, rel=0.01)
    assert whole["seeded"] == pytest.approx(shortages.SAMPLED_BYTES, rel=0.01)
    assert whole["logprobs"] == pytest.approx(shortages.SAMPLED_BYTES + 4, rel=0.02)
    # A CPU also converts the counts to FP32 in memory; a GPU does that while it multiplies.
    assert whole["penalties"] == pytest.approx(shortages.LOGITS_BYTES + shortages.PENALTY_BYTES + 4, rel=0.02)
    assert whole["logprobs of a prompt"] == pytest.approx(2 + shortages.LOGPROB_BYTES, rel=0.02)


def test_nothing_beside_the_plan_in_slices(sliced: Any) -> None:
    """With every kind of request a step takes no more than the plan says: the rehearsed sampling and its shortages."""
    assert shortages.ROWS_AT_ONCE == ROWS_AT_ONCE
    rows, words, tokens = sliced["rows"], sliced["words"], sliced["tokens"]
    plan = shortages.plan_shortages(rows, words, tokens, room_bytes=1 << 30)
    beyond = {demand.name: demand.beyond_bytes for demand in plan.demands}
    taken = sliced["sliced"]
    margin = rows * words // 50  # positions, ranks and the chosen logprobs
    for name, size in taken.items():
        assert size <= plan.rehearsed_bytes + beyond["penalties"] + margin, name
    for name in ("penalties", "logprobs", "both", "logprobs of a prompt"):
        assert taken[name] < sliced["whole"][name]
