"""The memory plan: against measured engines, and its arithmetic."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from servekit.preflight.checkpoint.text_config import FULL, SLIDING, TextConfig, parse_text_config
from servekit.preflight.host.gpu_rules import check_capability
from servekit.preflight.memory.gpu_models import GIB, GpuModel, parse_gpu_model
from servekit.preflight.memory.kv_layout import LayoutError, kv_layout
from servekit.preflight.memory.memory_plan import MemoryPlan, UnplannedError, kv_element_bytes
from servekit.preflight.memory.memory_plan import plan_memory as plan_any_memory
from servekit.preflight.memory.memory_report import check_plan, plan_as_dict, render_plan
from servekit.profile import EngineArguments, resolve

E4B = {
    "hidden_size": 2560,
    "intermediate_size": 10_240,
    "num_hidden_layers": 42,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "global_head_dim": 512,
    "sliding_window": 512,
    "num_kv_shared_layers": 18,
    "vocab_size": 262_144,
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131_072,
}
# The budget was meant to be 20.2 GiB, as a share of NVML's 79.65 GiB; vLLM applied the share to CUDA's 79.18 GiB.
BUDGET_GIB = 20.2 * 79.18 / 79.65
BUDGET = GpuModel(
    "an H100 with the budget of an L4", round(BUDGET_GIB / 0.9 * GIB), round(BUDGET_GIB / 0.9 * GIB), (9, 0)
)
W4A16_GIB, BF16_GIB = 9.18, 14.62


@pytest.fixture
def e4b() -> TextConfig:
    """The text configuration of gemma-4-E4B."""
    return parse_text_config(E4B)


@pytest.fixture
def text() -> Callable[..., TextConfig]:
    """A text configuration with some values altered."""
    return lambda **changes: parse_text_config({**E4B, **changes})


def plan_memory(text: TextConfig, weights_bytes: int, arguments: EngineArguments, gpu: GpuModel) -> MemoryPlan:
    """Plan with the profile's KV cache."""
    return plan_any_memory(text, weights_bytes, arguments, gpu, kv_cache_dtype=arguments.kv_cache_dtype)


def names(findings: Any) -> list[str]:
    """Return the names of findings."""
    return [finding.name for finding in findings]


def test_plan_agrees_with_the_measured_w4a16_engine(e4b: TextConfig, arguments: EngineArguments) -> None:
    """The plan of W4A16 with FP8 KV matches a measurement: 6.36 GiB, 527,665 tokens and 26.38 requests."""
    plan = plan_memory(e4b, round(W4A16_GIB * GIB), arguments, BUDGET)
    assert plan.available_bytes / GIB == pytest.approx(6.36, rel=0.02)
    assert plan.pool_tokens == pytest.approx(527_665, rel=0.02)
    assert plan.full_requests == pytest.approx(26.38, rel=0.02)


def test_layout_alone_is_exact(e4b: TextConfig) -> None:
    """From vLLM's bytes, the layout gives the figures that vLLM logged, apart from the log's rounding."""
    layout = kv_layout(e4b, block_tokens=16, element_bytes=1)
    per_request = layout.blocks_at_most(20_000, 4096)
    owners = sum(group.layers for group in layout.groups)
    assert (owners, layout.block_bytes, per_request) == (24, 131_072, 1975)
    assert round(6.36 * GIB) // layout.block_bytes / per_request == pytest.approx(26.38, rel=0.001)


def test_plan_agrees_with_the_measured_baseline(e4b: TextConfig, arguments: EngineArguments) -> None:
    """BF16 at the same budget left 0.94 GiB, not enough for two requests of full length."""
    baseline = replace(arguments, kv_cache_dtype="auto", quantization=None)
    plan = plan_memory(e4b, round(BF16_GIB * GIB), baseline, BUDGET)
    assert plan.available_bytes / GIB == pytest.approx(0.94, abs=0.05)  # the 14.62 GiB of weights are rounded, too
    (finding,) = check_plan(plan)
    assert (finding.name, str(finding.severity)) == ("memory-bottleneck", "warning")


def test_plan_names_the_first_bottleneck(e4b: TextConfig, arguments: EngineArguments) -> None:
    """The plan names which runs out first, the KV cache or max-num-seqs."""
    plan = plan_memory(e4b, round(W4A16_GIB * GIB), arguments, BUDGET)
    assert "the KV cache: full with 35" in plan_as_dict(plan)["first_bottleneck"]
    few = plan_memory(e4b, round(W4A16_GIB * GIB), replace(arguments, max_num_seqs=64), BUDGET)
    assert "max-num-seqs: 64 requests" in plan_as_dict(few)["first_bottleneck"]


@pytest.mark.parametrize(("share", "tight"), [(0.9, False), (0.93, False), (0.94, True), (0.95, True)])
def test_too_large_a_share_of_an_l4(e4b: TextConfig, arguments: EngineArguments, *, share: float, tight: bool) -> None:
    """The model card's 0.9 leaves an L4 enough headroom; more than 0.93 does not, and the remedy names that limit."""
    plan = plan_memory(
        e4b, round(W4A16_GIB * GIB), replace(arguments, gpu_memory_utilization=share), parse_gpu_model("l4")
    )
    found = {finding.name: finding for finding in check_plan(plan)}
    assert ("memory-headroom" in found) is tight
    if tight:
        assert found["memory-headroom"].remedy == "set gpu-memory-utilization to 0.93 or less"


def test_max_num_seqs_costs_memory(e4b: TextConfig, arguments: EngineArguments) -> None:
    """Fewer sequences leave more for the cache, because the sampler has fewer rows."""
    many = plan_memory(e4b, round(W4A16_GIB * GIB), arguments, BUDGET)
    few = plan_memory(e4b, round(W4A16_GIB * GIB), replace(arguments, max_num_seqs=256), BUDGET)
    assert few.available_bytes - many.available_bytes == 768 * 262_144 * 14


def test_profile_that_holds_no_request_is_an_error(e4b: TextConfig, arguments: EngineArguments) -> None:
    """One full-length request must fit; the remedy names the length that does."""
    plan = plan_memory(e4b, round(BF16_GIB * GIB), replace(arguments, max_model_len=131_072), BUDGET)
    (finding,) = check_plan(plan)
    assert finding.name == "memory-one-request"
    longest = plan.longest_request
    assert f"max-model-len to {longest} " in finding.remedy
    shorter = plan_memory(e4b, round(BF16_GIB * GIB), replace(arguments, max_model_len=longest), BUDGET)
    assert shorter.fits_one


def test_weights_beyond_the_budget_are_an_error(e4b: TextConfig, arguments: EngineArguments) -> None:
    """A model larger than the GPU is an error."""
    plan = plan_memory(e4b, 30 * GIB, arguments, BUDGET)
    (finding,) = check_plan(plan)
    assert finding.name == "memory-weights"
    assert plan.pool_tokens == 0


@pytest.mark.parametrize(("dtype", "expected"), [("fp8_e4m3", ["gpu-capability"]), ("auto", []), ("bfloat16", [])])
def test_gpu_without_fp8_is_an_error_for_an_fp8_cache_only(dtype: str, expected: list[str]) -> None:
    """An A10 has enough memory but no FP8, which a cache of another type does not need."""
    assert names(check_capability(parse_gpu_model("a10"), dtype)) == expected
    assert names(check_capability(parse_gpu_model("l4"), dtype)) == []


def test_overheads_are_in_the_plan(e4b: TextConfig, arguments: EngineArguments) -> None:
    """Weights, overheads and cache add up to the budget."""
    plan = plan_memory(e4b, GIB, arguments, BUDGET)
    assert plan.available_bytes + plan.graphs_bytes + plan.sampler_bytes + plan.base_bytes + GIB == plan.budget_bytes


def test_eager_mode_has_no_graphs(e4b: TextConfig, arguments: EngineArguments) -> None:
    """With enforce-eager no CUDA graphs take memory."""
    assert plan_memory(e4b, GIB, replace(arguments, enforce_eager=True), BUDGET).graphs_bytes == 0


def test_explicit_cache_sizes_win(e4b: TextConfig, arguments: EngineArguments) -> None:
    """kv-cache-memory-bytes and num-gpu-blocks-override set the pool, as in vLLM."""
    sized = plan_memory(e4b, GIB, replace(arguments, kv_cache_memory_bytes=2 * GIB), BUDGET)
    assert sized.available_bytes == 2 * GIB
    assert plan_memory(e4b, GIB, replace(arguments, num_gpu_blocks_override=4000), BUDGET).blocks == 4000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kv_cache_memory_bytes": 40 * GIB}, ["memory-cache"]),
        ({"num_gpu_blocks_override": 40 * GIB // 131_072}, ["memory-cache"]),
        ({"kv_cache_memory_bytes": 8 * GIB}, ["memory-bottleneck", "memory-headroom", "memory-penalties"]),
        ({"kv_cache_memory_bytes": 6 * GIB}, ["memory-bottleneck"]),
    ],
)
def test_explicit_cache_sizes_must_fit_the_gpu(
    e4b: TextConfig, arguments: EngineArguments, changes: dict[str, Any], expected: list[str]
) -> None:
    """A cache size set by the profile must fit on the GPU, together with the weights and the engine's overheads."""
    plan = plan_memory(e4b, round(W4A16_GIB * GIB), replace(arguments, **changes), parse_gpu_model("l4"))
    assert names(check_plan(plan)) == expected


def test_automatic_length_takes_what_fits(e4b: TextConfig) -> None:
    """max-model-len auto, as the profile gives it for -1 too, is the longest context that fits."""
    arguments = resolve({"max-model-len": "auto", "kv-cache-dtype": "fp8_e4m3"}, target="cuda")
    plan = plan_memory(e4b, round(BF16_GIB * GIB), arguments, BUDGET)
    assert plan.fits_one
    assert plan.max_model_len == 131_072
    short = plan_memory(e4b, round(18.4 * GIB), replace(arguments, enforce_eager=True), BUDGET)
    assert (short.fits_one, 0 < short.max_model_len < 131_072) == (True, True)


def test_cpu_pool_is_set_directly(e4b: TextConfig) -> None:
    """On the CPU VLLM_CPU_KVCACHE_SPACE sets the pool, which has blocks of 128 tokens and is never FP8."""
    plan = plan_any_memory(e4b, GIB, resolve({}, target="cpu"), None, kv_space_gib=1)
    assert plan.available_bytes == GIB
    assert plan.block_bytes == 128 * 2 * 2 * 512 * 2 * 4


@pytest.mark.parametrize(
    ("changes", "groups", "group_layers"),
    [
        ({}, 6, 4),  # 4 full and 20 sliding layers own a cache
        ({"num_kv_shared_layers": 0}, 6, 7),  # 7 full, 35 sliding
        ({"num_hidden_layers": 5, "num_kv_shared_layers": 0, "layer_types": [FULL] * 2 + [SLIDING] * 3}, 3, 2),
        ({"num_hidden_layers": 9, "num_kv_shared_layers": 0, "layer_types": [FULL] * 4 + [SLIDING] * 5}, 2, 5),
    ],
)
def test_layers_are_grouped_as_vllm_does(
    text: Callable[..., TextConfig], changes: dict[str, Any], groups: int, group_layers: int
) -> None:
    """The rarer kind sets the size of a group, unless both kinds have nearly as many layers."""
    layout = kv_layout(text(**changes), block_tokens=16, element_bytes=2)
    assert (len(layout.groups), layout.group_layers) == (groups, group_layers)


def test_uniform_layers_form_one_group(text: Callable[..., TextConfig]) -> None:
    """A model with one kind of layer has one block table."""
    layout = kv_layout(
        text(num_hidden_layers=4, num_kv_shared_layers=0, layer_types=[FULL] * 4), block_tokens=16, element_bytes=2
    )
    assert len(layout.groups) == 1
    assert layout.block_bytes == 4 * 16 * 2 * 2 * 512 * 2
    assert layout.blocks_at_most(1000, 4096) == 63


def test_without_hybrid_manager_every_layer_keeps_all(e4b: TextConfig) -> None:
    """disable-hybrid-kv-cache-manager makes sliding layers cost as much as full ones."""
    plain = kv_layout(e4b, block_tokens=16, element_bytes=1, hybrid=False)
    hybrid = kv_layout(e4b, block_tokens=16, element_bytes=1)
    full = plain.blocks_at_most(20_000, 4096) * plain.block_bytes
    assert full == 1250 * 16 * 2 * 2 * (4 * 512 + 20 * 256)
    assert full > hybrid.blocks_at_most(20_000, 4096) * hybrid.block_bytes


def test_pages_that_do_not_divide_have_no_layout(text: Callable[..., TextConfig]) -> None:
    """vLLM rejects head sizes whose pages are not multiples of each other; so does the plan."""
    with pytest.raises(LayoutError, match="not multiples"):
        kv_layout(text(head_dim=192), block_tokens=16, element_bytes=2)


def test_longest_request_is_the_longest(e4b: TextConfig) -> None:
    """One token more than the longest request does not fit."""
    layout = kv_layout(e4b, block_tokens=16, element_bytes=1)
    for blocks in (0, 5, 6, 100, 900, 1975):
        longest = layout.longest_request(blocks, 131_072, 4096)
        assert layout.blocks_at_most(longest, 4096) <= blocks or longest == 0
        assert layout.blocks_at_most(longest + 1, 4096) > blocks


def test_unknown_cache_dtype_is_not_guessed() -> None:
    """A KV cache dtype of unknown size cannot be planned."""
    assert kv_element_bytes("auto", "float32") == 4
    with pytest.raises(UnplannedError, match="nvfp4"):
        kv_element_bytes("nvfp4", "bfloat16")


def test_the_plan_counts_vllms_own_batch(e4b: TextConfig) -> None:
    """Batch settings that the profile omits have vLLM's defaults, by the GPU's memory and on the CPU."""
    h100 = parse_gpu_model("h100")
    large = resolve({}, target="cuda", gpu_name=h100.name, gpu_bytes=h100.usable_bytes)
    assert (large.max_num_seqs, large.max_num_batched_tokens) == (1024, 8192)
    assert plan_memory(e4b, GIB, large, h100).sampler_bytes == 1024 * 262_144 * 14
    on_cpu = plan_any_memory(e4b, GIB, resolve({}, target="cpu"), None, kv_space_gib=1)
    assert on_cpu.max_num_seqs == 128


@pytest.mark.parametrize(
    ("given", "name", "gib"),
    [("l4", "L4", 22.03), ("NVIDIA L4", "L4", 22.03), ("H100", "H100 80GB", 79.18), ("24GiB", "24GiB", 24)],
)
def test_gpus_are_found(given: str, name: str, gib: float) -> None:
    """A GPU can be given by its short name, its full name or an amount of memory."""
    gpu = parse_gpu_model(given)
    assert gpu.name == name
    assert gpu.usable_bytes / GIB == pytest.approx(gib)


@pytest.mark.parametrize("given", ["", "l5", "24", "0GiB", "24 XiB", "-3GiB"])
def test_unknown_gpus_are_rejected_with_the_known(given: str) -> None:
    """The error for a wrong name lists the known ones."""
    with pytest.raises(ValueError, match=r"l4, .*24GiB"):
        parse_gpu_model(given)


def test_plan_is_shown_and_exported(e4b: TextConfig, arguments: EngineArguments) -> None:
    """The table is aligned and the dictionary is JSON."""
    plan = plan_memory(e4b, round(W4A16_GIB * GIB), arguments, BUDGET)
    lines = render_plan(plan).splitlines()
    assert {len(line[:48].rstrip()) for line in lines[:-1]} == {48}
    assert lines[0] == "memory of the device                   22.31 GiB  an H100 with the budget of an L4"
    assert lines[-1].startswith("first bottleneck")
    assert json.loads(json.dumps(plan_as_dict(plan)))["fits_one"] is True


def test_wrong_text_configurations_tell_everything() -> None:
    """The error lists all mistakes of a text configuration."""
    with pytest.raises(ValueError, match="is missing") as caught:
        parse_text_config({"hidden_size": 0, "head_dim": "256"})
    assert len(str(caught.value).split("; ")) == 5
