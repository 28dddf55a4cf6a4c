"""What requests take beside the rehearsed batch: against measured engines, and the bounds that follow."""

import itertools
from dataclasses import replace

import pytest

from servekit.preflight.checkpoint.text_config import parse_text_config
from servekit.preflight.memory import shortages
from servekit.preflight.memory.gpu_models import GIB, parse_gpu_model
from servekit.preflight.memory.memory_plan import plan_memory
from servekit.preflight.memory.memory_report import check_plan, render_plan
from servekit.preflight.memory.shortages import Shortages, plan_shortages
from servekit.profile import EngineArguments, resolve
from tests.preflight.test_memory import E4B, W4A16_GIB

WORDS = 262_144
CAP_GIB = 21.53
"""An L4's 22.03 GiB without the CUDA context."""
WHOLE = {
    "logprobs": shortages.SAMPLED_BYTES + 4,
    "penalties": shortages.LOGITS_BYTES + shortages.PENALTY_BYTES,
    "prompt": 2 + shortages.LOGPROB_BYTES,
    "mask": shortages.SAMPLED_BYTES + 1,
}
"""What vLLM alone takes, by row and word: it computes the whole batch in one go."""


@pytest.mark.parametrize(
    ("kind", "rows", "peak_gib"),
    [
        ("mask", 1000, 19.81),
        ("prompt", 2000, 21.02),
        ("penalties", 768, 21.39),
        ("penalties", 1000, 22.98),
    ],
)
def test_measured_peaks(kind: str, rows: int, peak_gib: float) -> None:
    """The bytes by row and word explain every peak measured on an H100 from one of them (logprobs in 1,000 rows)."""
    without_gib = 20.54 - WHOLE["logprobs"] * 1000 * WORDS / GIB
    assert without_gib + WHOLE[kind] * rows * WORDS / GIB == pytest.approx(peak_gib, abs=0.02)


@pytest.mark.parametrize(("kind", "fine", "ended"), [("penalties", 768, 1000), ("prompt", 2000, 3000)])
def test_measured_ends(kind: str, fine: int, ended: int) -> None:
    """With an L4's memory vLLM alone lived and ended where these bytes say so."""
    without_gib = 20.54 - WHOLE["logprobs"] * 1000 * WORDS / GIB
    assert without_gib + WHOLE[kind] * fine * WORDS / GIB < CAP_GIB < without_gib + WHOLE[kind] * ended * WORDS / GIB


def total(rows: int, words: int, prompt: int, longest: int) -> int:
    """Add up the tensors of a step in which every row has penalties, logprobs and structured output."""
    masks, prompts = rows * words // 8, rows * prompt * 8
    sampling = rows * words * shortages.SAMPLED_BYTES + prompts + masks
    together = min(rows, shortages.ROWS_AT_ONCE)
    counts = together * words * shortages.PENALTY_BYTES + together * longest * 8
    penalties = rows * words * shortages.LOGITS_BYTES + counts + rows * longest * 9 + prompts + masks
    return max(sampling, penalties)


@pytest.mark.parametrize(
    ("rows", "words", "longest", "room"),
    list(itertools.product((1, 8, 64, 256, 1024), (WORDS,), (512, 20_000, 131_072), (0, GIB // 4, GIB, 4 * GIB))),
)
def test_the_bound_is_the_longest_prompt_that_fits(rows: int, words: int, longest: int, room: int) -> None:
    """At the bound everything fits into the rehearsal and the room; one token more does not, or nothing is longer."""
    plan = plan_shortages(rows, words, longest, room)
    most = plan.rehearsed_bytes + room
    assert total(rows, words, plan.penalised_tokens, longest) <= most or plan.penalised_tokens == 0
    if plan.penalised_tokens < longest:
        assert total(rows, words, plan.penalised_tokens + 1, longest) > most


def planned(arguments: EngineArguments, utilization: float) -> Shortages:
    """Plan the shipped model on an L4."""
    arguments = replace(arguments, gpu_memory_utilization=utilization)
    plan = plan_memory(
        parse_text_config(E4B), round(W4A16_GIB * GIB), arguments, parse_gpu_model("l4"), kv_cache_dtype="fp8"
    )
    assert plan.shortages
    assert ("memory-penalties" in {each.name for each in check_plan(plan)}) == (
        plan.shortages.penalised_tokens < plan.max_model_len
    )
    return plan.shortages


def test_the_cards_profile_bounds_nothing(arguments: EngineArguments) -> None:
    """With the shipped profile on an L4 every row may ask for everything, at full length, and no cache is given up."""
    plan = planned(arguments, 0.9)
    assert plan.penalised_tokens == 20_000
    assert plan.room_bytes == pytest.approx(1.7 * GIB, rel=0.01)
    assert sum(each.beyond_bytes for each in plan.demands) < plan.room_bytes


def test_a_seed_beside_flashinfer_is_planned() -> None:
    """vLLM's own sampler is then not rehearsed: its top-k kernel's buffer comes on top, at the cost of the room."""
    by_kernel = {
        flashinfer: plan_shortages(1024, WORDS, 131_072, GIB, flashinfer=flashinfer) for flashinfer in (False, True)
    }
    seeds = [plan.demands[-1].beyond_bytes for plan in by_kernel.values()]
    assert seeds == [0, 160 * WORDS * 4]
    assert by_kernel[True].penalised_tokens < by_kernel[False].penalised_tokens


def test_a_larger_budget_bounds_penalties(arguments: EngineArguments) -> None:
    """A budget that leaves nothing allows no penalties; lowering it trades cache for them."""
    assert planned(arguments, 0.98).penalised_tokens == 0
    some = planned(replace(arguments, max_model_len=131_072), 0.96).penalised_tokens
    assert 0 < some < planned(replace(arguments, max_model_len=131_072), 0.92).penalised_tokens


def test_a_cache_of_set_size_leaves_what_is_left(arguments: EngineArguments) -> None:
    """With kv-cache-memory-bytes the room is what weights, sampler and that cache leave, whatever the budget."""
    sized = planned(replace(arguments, kv_cache_memory_bytes=4 * GIB), 0.9)
    assert sized.room_bytes > planned(arguments, 0.9).room_bytes + GIB


def test_plan_lists_each_with_rows_and_tokens(arguments: EngineArguments) -> None:
    """The table has each kind of request with its bytes; on the CPU, which rehearses nothing, it has none."""
    text = parse_text_config(E4B)
    lines = render_plan(plan_memory(text, 9 * GIB, arguments, parse_gpu_model("l4"), kv_cache_dtype="fp8"))
    assert "17 bytes for each row and token" in lines
    for name in ("penalties", "logprobs", "logprobs of a prompt", "structured output"):
        assert f"\n  {name} " in lines
    on_cpu = plan_memory(text, GIB, resolve({}, target="cpu"), None, kv_space_gib=1)
    assert on_cpu.shortages is None
    assert "penalties" not in render_plan(on_cpu)
