"""What servekit promises on a GPU, judged by the records of one run; benchmarks/gpu takes them."""

import statistics
from collections.abc import Callable
from typing import Any

import pytest
from benchmarks.gpu.compare import burst_later, pooled

Record = Callable[[str], dict[str, Any]]
CHECKPOINTS = ("start", "baseline")
LOADS = ("load", "load-bare-first")
"""Either server was the first on the card once."""
PHASES = ("preflight", "imports", "engine", "weights", "compile", "warm-up", "verify")


@pytest.mark.parametrize(
    ("stage", "start"),
    [("start", "cold_start"), *((stage, "warm_start") for stage in LOADS), ("baseline", "start")],
)
def test_contract_is_met(record: Record, stage: str, start: str) -> None:
    """The running engine does what was planned, item by item."""
    items = record(stage)[start]["contract"]
    assert items
    assert [item for item in items if not item["met"]] == []


def test_optimised_profile_runs_unchanged(record: Record) -> None:
    """The contract's own values, not deviations of them, are what the engine runs with."""
    got = {item["item"]: item["got"] for item in record("start")["cold_start"]["contract"]}
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


@pytest.mark.parametrize("stage", LOADS)
def test_warm_start_takes_half_of_a_cold_one(record: Record, stage: str) -> None:
    """Kept compile caches halve the start, at least."""
    assert record(stage)["warm_start"]["ready_s"] <= record("start")["cold_start"]["ready_s"] / 2


def rows(record: Record) -> list[dict[str, Any]]:
    """Every load on both servers, of both orders of their start."""
    return [row for stage in LOADS for row in record(stage)["at_once"]]


def test_no_request_fails_under_load(record: Record) -> None:
    """Text and three images at 1, 32, 256 and 512 streams: every request is answered."""
    wanted = {f"{kind}-{streams}" for kind in ("text", "images") for streams in (1, 32, 256, 512)}
    assert {row["load"] for row in rows(record)} == wanted
    assert [row for row in rows(record) if "failure" in row or row["servekit"]["failed"]] == []


def test_guard_holds_a_request_for_less_than_a_millisecond(record: Record) -> None:
    """From its headers to vLLM a request takes a millisecond at most, at every number of streams: half of them less."""
    held = [(row["load"], row["servekit"]["held"]["median_ms"]) for row in record("load")["at_once"]]
    assert [(load, ms) for load, ms in held if ms > 1] == []


def test_throughput_is_that_of_vllm_alone(record: Record) -> None:
    """servekit gives 0.99 of what vLLM alone gives: all loads together, and each as far as the figures can tell."""
    loads = pooled(rows(record))
    assert statistics.geometric_mean(each["throughput"] for each in loads.values()) >= 0.99
    assert [each for each in loads.items() if each[1]["throughput"] + 2 * each[1]["throughput_error"] < 0.99] == []


def test_first_token_comes_when_vllm_alone_sends_it(record: Record) -> None:
    """The median time to the first token grows by a millisecond at most, as far as the figures can tell."""
    loads = pooled(rows(record))
    assert [each for each in loads.items() if each[1]["ttft_added_ms"] - 2 * each[1]["ttft_error_ms"] > 1] == []


def test_first_tokens_of_a_burst_are_two_percent_later_at_most(record: Record) -> None:
    """Of 256 requests at once each waits for the work on those before it: 2 %, as far as figures can tell."""
    bursts = record("load-bare-first")["bursts"]
    assert [row for row in bursts if "failure" in row or row["servekit"]["failed"]] == []
    later = burst_later(bursts)
    assert later["share"] - 2 * later["share_error"] <= 0.02


def test_drain_finishes_every_running_stream(record: Record) -> None:
    """SIGTERM lets 32 running streams finish, and ends with 0."""
    drain = record("start")["drain"]
    assert drain["exit_code"] == 0
    assert list(drain["streams"]) == ["whole"]


def test_drain_answers_late_requests_whole_or_not_at_all(record: Record) -> None:
    """What comes with the SIGTERM, in one of the first batches after a cold start, is served whole or refused."""
    late = record("start")["drain"]["streams_in_the_same_moment"]
    assert {how for how in late if how not in ("whole", "HTTP 503") and not how.startswith("connection")} == set()


@pytest.mark.parametrize("stage", LOADS)
def test_engine_death_is_told_within_six_seconds(record: Record, stage: str) -> None:
    """A killed EngineCore ends servekit with 5."""
    killed = record(stage)["core_killed"]
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
    refused = record("start")[fault]
    assert refused["exit_code"] == 3
    assert refused["seconds"] < 10


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_a_phase_of_the_start(record: Record, phase: str) -> None:
    """A stop during the start is obeyed at once, in every phase."""
    stop = record("stops")[f"sigterm-{phase}"]
    assert stop["phase"] == phase
    assert stop["exit_code"] == 0
    assert stop["seconds"] < 5


def test_engine_that_finds_too_little_memory_itself_is_told(record: Record) -> None:
    """Where preflight is told to pass a share too small for one request, the engine's reason is told, with 4."""
    ended = record("stops")["too_small_unchecked"]
    assert ended["exit_code"] == 4
    assert "raise gpu-memory-utilization" in ended["last_line"]


def test_nothing_is_left_behind(record: Record) -> None:
    """After every ending no process lives and none is listed on the GPU."""
    named = {
        "start": ("drain", "second_instance", "too_small"),
        "load": ("core_killed",),
        "load-bare-first": ("core_killed",),
        "baseline": ("optimised_end", "hang"),
        "stops": ("too_small_unchecked", *(f"sigterm-{phase}" for phase in PHASES)),
    }
    endings = {name: record(stage)[name] for stage, names in named.items() for name in names}
    left = {name: (end["processes_left"], end["gpu_processes_left"]) for name, end in endings.items()}
    assert {name: what for name, what in left.items() if what != ([], [])} == {}


def test_quantization_pays(record: Record) -> None:
    """At the same budget the optimised profile has a larger pool, more tokens a second and more tokens a joule."""
    values = record("baseline")
    assert values["optimised_engine"]["pool_tokens"] > 5 * values["engine"]["pool_tokens"]
    tokens, seconds, joules = (
        {name: sum(each[figure] for each in rounds) for name, rounds in values["ratio"].items()}
        for figure in ("total_output_tokens", "duration", "energy_j")
    )
    assert tokens["optimised"] == tokens["baseline"]
    assert seconds["optimised"] < seconds["baseline"] / 1.5
    assert joules["optimised"] < joules["baseline"] / 1.5


@pytest.mark.advisory("CVE-2026-105922", "vllm#5907", "vllm#38830")
def test_no_request_takes_more_memory_than_an_l4_has(record: Record) -> None:
    """With an L4's memory every request is answered or refused, alone and into a full batch, and the engine lives."""
    taken = record("memory")
    assert taken["cap"]["holds"]
    assert [each["name"] for each in taken["volleys"] if not each["alive"]] == []
    assert taken["volleys"][-1]["name"] == "plain"
    assert {status for each in taken["volleys"] for status in each["shots"]} <= {"200", "400", "429"}
    in_rows = [each for each in taken["volleys"] if each["name"].endswith("-in-rows") or each["name"] == "plain"]
    assert {status for each in in_rows for status in each["rows"]} == {"200"}


@pytest.mark.parametrize("killer", ["prompt_logprobs", "penalty", "logprobs", "echo"])
def test_each_memory_killer_ends_vllm_alone(record: Record, killer: str) -> None:
    """Without the guard the same memory ends the engine: the bounds are needed."""
    taken = record("memory-bare")["killers"][killer]
    assert not taken["alive"]
    assert any("out of memory" in line.lower() for line in taken["causes"])
