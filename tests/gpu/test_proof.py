"""What servekit promises on a GPU, judged by the records of one run; benchmarks/gpu takes them."""

from collections.abc import Callable
from typing import Any

import pytest

Record = Callable[[str], dict[str, Any]]
CHECKPOINTS = ("optimised", "baseline")
PHASES = ("imports", "engine", "weights", "compile", "warm-up")


@pytest.mark.parametrize(
    ("stage", "start"), [("optimised", "cold_start"), ("optimised", "warm_start"), ("baseline", "start")]
)
def test_contract_is_met(record: Record, stage: str, start: str) -> None:
    """The running engine does what was planned, item by item."""
    items = record(stage)[start]["contract"]
    assert items
    assert [item for item in items if not item["met"]] == []


def test_optimised_profile_runs_unchanged(record: Record) -> None:
    """The contract's own values, not deviations of them, are what the engine runs with."""
    got = {item["item"]: item["got"] for item in record("optimised")["cold_start"]["contract"]}
    assert got["kv-cache-dtype"] == "fp8_e4m3"
    assert got["quantization"] == "compressed-tensors"
    assert got["max-num-seqs"] == 1024
    assert got["image limit"] == 3


@pytest.mark.parametrize("stage", CHECKPOINTS)
def test_weights_are_planned_within_one_percent(record: Record, stage: str) -> None:
    """The plan's weights are what the engine says its model takes."""
    assert abs(record(stage)["plan_over_engine"]["weights"]) <= 0.01


@pytest.mark.parametrize("stage", CHECKPOINTS)
def test_pool_is_planned_within_two_percent(record: Record, stage: str) -> None:
    """The plan's KV pool is the engine's."""
    assert abs(record(stage)["plan_over_engine"]["pool_tokens"]) <= 0.02


def test_warm_start_takes_half_of_a_cold_one(record: Record) -> None:
    """Kept compile caches halve the start, at least."""
    values = record("optimised")
    assert values["warm_start"]["ready_s"] <= values["cold_start"]["ready_s"] / 2


def test_no_request_fails_under_load(record: Record) -> None:
    """Every request of every load is answered."""
    assert [row["load"] for row in record("optimised")["side_by_side"] if row["servekit"]["failed"]] == []


def test_throughput_is_that_of_vllm_alone(record: Record) -> None:
    """At every number of streams servekit gives 0.99 of what vLLM alone gives."""
    ratios = {row["load"]: row["throughput_ratio"] for row in record("optimised")["side_by_side"]}
    assert {name: ratio for name, ratio in ratios.items() if ratio < 0.99} == {}


def test_first_token_comes_when_vllm_alone_sends_it(record: Record) -> None:
    """At every number of streams the median time to the first token grows by a millisecond at most."""
    added = {row["load"]: row["ttft_added_ms"] for row in record("optimised")["side_by_side"]}
    assert {name: ms for name, ms in added.items() if ms > 1} == {}


def test_drain_finishes_every_running_stream(record: Record) -> None:
    """SIGTERM lets 32 running streams finish, and ends with 0."""
    drain = record("optimised")["drain"]
    assert drain["exit_code"] == 0
    assert list(drain["streams"]) == ["whole"]


def test_engine_death_is_told_within_six_seconds(record: Record) -> None:
    """A killed EngineCore ends servekit with 5."""
    killed = record("optimised")["core_killed"]
    assert killed["exit_code"] == 5
    assert killed["seconds"] <= 6


def test_stopped_engine_counts_as_hung(record: Record) -> None:
    """A stopped EngineCore, whose /health stays 200, ends servekit with 6 once the hang time is over."""
    hang = record("baseline")["hang"]
    assert hang["engine_health_when_stopped"] == 200
    assert hang["exit_code"] == 6


@pytest.mark.parametrize("fault", ["second_instance", "too_small"])
def test_what_does_not_fit_is_refused_before_the_start(record: Record, fault: str) -> None:
    """A second instance, and a share too small for one request, end with 3 in seconds."""
    refused = record("optimised")[fault]
    assert refused["exit_code"] == 3
    assert refused["seconds"] < 10


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_a_phase_of_the_start(record: Record, phase: str) -> None:
    """A stop during the start is obeyed at once, in every phase."""
    stop = record("stops")["sigterm"][phase]
    assert stop["phase"] == phase
    assert stop["exit_code"] == 0
    assert stop["seconds"] < 5


def test_nothing_is_left_behind(record: Record) -> None:
    """After every ending no process lives and none is listed on the GPU."""
    values = record("optimised")
    endings = {name: values[name] for name in ("drain", "core_killed", "second_instance", "too_small")}
    endings |= {"hang": record("baseline")["hang"]} | record("stops")["sigterm"]
    left = {name: (end["processes_left"], end["gpu_processes_left"]) for name, end in endings.items()}
    assert {name: what for name, what in left.items() if what != ([], [])} == {}


def test_quantization_pays(record: Record) -> None:
    """At the same budget the optimised profile has a larger pool, more tokens a second and more tokens a joule."""
    optimised, baseline = record("optimised"), record("baseline")
    assert optimised["engine"]["pool_tokens"] > 5 * baseline["engine"]["pool_tokens"]
    assert optimised["ratio"]["output_throughput"] > 1.5 * baseline["ratio"]["output_throughput"]
    assert optimised["ratio"]["energy_j"] < baseline["ratio"]["energy_j"] / 1.5
