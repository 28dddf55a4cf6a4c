"""What servekit promises on a GPU, judged by the records of one run; benchmarks/gpu takes them."""

import statistics
from collections.abc import Callable
from typing import Any

import pytest
from benchmarks.gpu.compare import burst_later, pooled
from benchmarks.gpu.volleys import FULL

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
    """The running engine matches the plan, item by item."""
    items = record(stage)[start]["contract"]
    assert items
    assert [item for item in items if not item["met"]] == []


def test_optimised_profile_runs_unchanged(record: Record) -> None:
    """The engine runs with the contract's values, not with deviations."""
    got = {item["item"]: item["got"] for item in record("start")["cold_start"]["contract"]}
    assert got["kv-cache-dtype"] == "fp8_e4m3"
    assert got["quantization"] == "compressed-tensors"
    assert got["max-num-seqs"] == 1024
    assert got["image limit"] == 3


@pytest.mark.parametrize("stage", CHECKPOINTS)
def test_weights_are_planned_within_one_percent(record: Record, stage: str) -> None:
    """The plan's weights are what the engine reports for its model."""
    assert abs(record(stage)["plan_over_engine"]["weights"]) <= 0.01


@pytest.mark.parametrize("stage", CHECKPOINTS)
def test_pool_is_planned_within_two_percent(record: Record, stage: str) -> None:
    """The plan's KV pool is the engine's."""
    assert abs(record(stage)["plan_over_engine"]["pool_tokens"]) <= 0.02


@pytest.mark.parametrize("stage", LOADS)
def test_warm_start_takes_half_of_a_cold_one(record: Record, stage: str) -> None:
    """Kept compile caches at least halve the start."""
    assert record(stage)["warm_start"]["ready_s"] <= record("start")["cold_start"]["ready_s"] / 2


def rows(record: Record) -> list[dict[str, Any]]:
    """Return every load on both servers, from both start orders."""
    return [row for stage in LOADS for row in record(stage)["at_once"]]


def test_no_request_fails_under_load(record: Record) -> None:
    """Text and three images at 1, 32, 256 and 512 streams: every request is answered."""
    wanted = {f"{kind}-{streams}" for kind in ("text", "images") for streams in (1, 32, 256, 512)}
    assert {row["load"] for row in rows(record)} == wanted
    assert [row for row in rows(record) if "failure" in row or row["servekit"]["failed"]] == []


def test_guard_holds_a_request_for_less_than_a_millisecond(record: Record) -> None:
    """A request's median time from its headers to vLLM is at most a millisecond, at every number of streams."""
    held = [(row["load"], row["servekit"]["held"]["median_ms"]) for row in record("load")["at_once"]]
    assert [(load, ms) for load, ms in held if ms > 1] == []


def test_throughput_is_that_of_vllm_alone(record: Record) -> None:
    """servekit gives 0.99 of vLLM's throughput: over all loads, and in each within the measurement error."""
    loads = pooled(rows(record))
    assert statistics.geometric_mean(each["throughput"] for each in loads.values()) >= 0.99
    assert [each for each in loads.items() if each[1]["throughput"] + 2 * each[1]["throughput_error"] < 0.99] == []


def test_first_token_comes_when_vllm_alone_sends_it(record: Record) -> None:
    """The median time to the first token grows by a millisecond at most, within the measurement error."""
    loads = pooled(rows(record))
    assert [each for each in loads.items() if each[1]["ttft_added_ms"] - 2 * each[1]["ttft_error_ms"] > 1] == []


def test_first_tokens_of_a_burst_are_two_percent_later_at_most(record: Record) -> None:
    """A burst of 256 requests, each waiting for those before it, has its median first token at most 2 % later."""
    bursts = record("load-bare-first")["bursts"]
    assert [row for row in bursts if "failure" in row or row["servekit"]["failed"]] == []
    later = burst_later(bursts)
    assert later["share"] - 2 * later["share_error"] <= 0.02


def test_drain_finishes_every_running_stream(record: Record) -> None:
    """After SIGTERM 32 running streams finish, and servekit exits with 0."""
    drain = record("start")["drain"]
    assert drain["exit_code"] == 0
    assert list(drain["streams"]) == ["whole"]


def test_drain_answers_late_requests_whole_or_not_at_all(record: Record) -> None:
    """Requests arriving with the SIGTERM, in one of the first batches after a cold start, are completed or refused."""
    late = record("start")["drain"]["streams_in_the_same_moment"]
    assert {how for how in late if how not in ("whole", "HTTP 503") and not how.startswith("connection")} == set()


@pytest.mark.parametrize("stage", LOADS)
def test_engine_death_is_told_within_six_seconds(record: Record, stage: str) -> None:
    """servekit exits with 5 when EngineCore is killed."""
    killed = record(stage)["core_killed"]
    assert killed["exit_code"] == 5
    assert killed["seconds"] <= 6


def test_stopped_engine_counts_as_hung(record: Record) -> None:
    """servekit exits with 6 after the hang time when EngineCore is stopped, although /health stays 200."""
    hang = record("baseline")["hang"]
    assert hang["engine_health_when_stopped"] == 200
    assert hang["exit_code"] == 6


@pytest.mark.parametrize("fault", ["second_instance", "too_small"])
def test_what_does_not_fit_is_refused_before_the_start(record: Record, fault: str) -> None:
    """A second instance, and a share too small for one request, exit with 3 in seconds."""
    refused = record("start")[fault]
    assert refused["exit_code"] == 3
    assert refused["seconds"] < 10


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_a_phase_of_the_start(record: Record, phase: str) -> None:
    """SIGTERM during the start ends it immediately, in every phase."""
    stop = record("stops")[f"sigterm-{phase}"]
    assert stop["phase"] == phase
    assert stop["exit_code"] == 0
    assert stop["seconds"] < 5


def test_engine_that_finds_too_little_memory_itself_is_told(record: Record) -> None:
    """With preflight's check of too small a share skipped, servekit logs the engine's reason and exits with 4."""
    ended = record("stops")["too_small_unchecked"]
    assert ended["exit_code"] == 4
    assert "raise gpu-memory-utilization" in ended["last_line"]


def test_nothing_is_left_behind(record: Record) -> None:
    """After every ending no process is alive and the driver lists none on the GPU."""
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
    """At the same budget the optimised profile has a larger pool, more tokens per second and more tokens per joule."""
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
    """With an L4's memory the engine survives and answers or refuses every request, alone and in a full batch."""
    taken = record("memory")
    assert taken["cap"]["holds"]
    assert [each["name"] for each in taken["volleys"] if not each["alive"]] == []
    assert taken["volleys"][-1]["name"] == "plain"
    assert {status for each in taken["volleys"] for status in each["shots"]} <= {"200", "400", "429"}
    in_rows = [each for each in taken["volleys"] if each["name"].endswith("-in-rows") or each["name"] == "plain"]
    assert {status for each in in_rows for status in each["rows"]} == {"200"}


def test_every_bound_holds_beside_a_full_cache(record: Record) -> None:
    """With an L4's memory the engine lives with every kind of request at its bound, in 1,024 rows and a full cache."""
    taken = record("memory-full")
    assert taken["cap"]["holds"]
    assert taken["volleys"][-1]["name"] == "plain"
    assert [each["name"] for each in taken["volleys"] if not each["alive"]] == []
    assert {status for each in taken["volleys"] for status in (*each["shots"], *each["rows"])} == {"200"}
    full = [each for each in taken["volleys"] if each["name"].endswith("-beside-full-cache")]
    assert [each["name"] for each in full if each["cache"] < FULL] == []


@pytest.mark.parametrize("killer", ["prompt_logprobs", "penalty", "logprobs", "echo"])
def test_each_memory_killer_ends_vllm_alone(record: Record, killer: str) -> None:
    """Without the guard the engine dies with the same memory: the bounds are needed."""
    taken = record("memory-bare")["killers"][killer]
    assert not taken["alive"]
    assert any("out of memory" in line.lower() for line in taken["causes"])
