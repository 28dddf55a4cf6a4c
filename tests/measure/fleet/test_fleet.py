"""How many replicas a rate needs: the model against queueing theory, the simulation against both, and the command."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.measure.fleet import Speeds, Work, fit_speeds, plan_fleet, simulate
from servekit.measure.record import Latency, Range, Record
from tests.measure.replay import Run

SPEEDS = Speeds(step_s=0.012, per_request_s=0.0001, prompt_s=5e-5, measured_running=512)
WORK = Work(rate=8, prompt=600, output=256)


def record_of(running: float, folder: Path) -> Record:
    """Return a record of a replica as fast as SPEEDS with so many running requests."""
    own = folder / f"trace-{running}"
    own.mkdir()
    record = Run().record(own)

    def latency(mean_s: float) -> Latency:
        return Latency(count=100, mean_s=mean_s, p50_s=mean_s, p90_s=mean_s, p95_s=mean_s, p99_s=mean_s)

    assert record.run.work
    tokens = record.run.work.prompt_tokens
    found = {
        "time_per_output_token": latency(SPEEDS.step_s + running * SPEEDS.per_request_s),
        "prefill": latency(SPEEDS.prompt_s * tokens / 100),
    }
    engine = record.engine.model_copy(update={"running": Range(mean=running, highest=running), "latency": found})
    return record.model_copy(update={"engine": engine})


def test_speeds_are_found_again(tmp_path: Path) -> None:
    """Records of three loads give the speeds that they were made with."""
    found = fit_speeds([record_of(running, tmp_path) for running in (8, 128, 512)])
    assert found.step_s == pytest.approx(SPEEDS.step_s)
    assert found.per_request_s == pytest.approx(SPEEDS.per_request_s)
    assert found.prompt_s == pytest.approx(SPEEDS.prompt_s)
    assert found.measured_running == 512


@pytest.mark.parametrize("rate", [2.0, 8.0, 16.0, 24.0])
def test_simulation_and_model_agree(rate: float) -> None:
    """Running requests and time of a request are within 3 % where many run: randomness then averages out."""
    work = Work(rate, WORK.prompt, WORK.output)
    plan = plan_fleet(work, SPEEDS, max_running=1024, replicas=1)
    seen = simulate(work, SPEEDS, replicas=1, max_running=1024, requests=40_000)
    assert seen.running == pytest.approx(plan.running, rel=0.03)
    assert seen.mean_request_s == pytest.approx(plan.request_s, rel=0.03)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_fixed_service_times_give_the_known_queue(load: float) -> None:
    """One request at a time, each one second: the wait is that of an M/D/1 queue, load / (2 (1 - load))."""
    seen = simulate(Work(load, 0, 1), Speeds(1, 0, 0, 1), replicas=1, max_running=1, requests=200_000)
    assert seen.mean_wait_s == pytest.approx(load / (2 * (1 - load)), rel=0.05)
    assert seen.running == pytest.approx(load, rel=0.02)


def test_turns_are_better_than_chance() -> None:
    """Behind a router that takes turns arrivals at a replica are more regular: it waits less than one alone."""
    alone = simulate(Work(0.8, 0, 1), Speeds(1, 0, 0, 1), replicas=1, max_running=1, requests=50_000)
    three = simulate(Work(2.4, 0, 1), Speeds(1, 0, 0, 1), replicas=3, max_running=1, requests=150_000)
    assert three.mean_wait_s < 0.7 * alone.mean_wait_s


def test_a_thousand_replicas() -> None:
    """The plan for a thousand replicas holds in the simulation of a thousand."""
    work = Work(16_000, WORK.prompt, WORK.output)
    plan = plan_fleet(work, SPEEDS, max_running=1024, replicas=1000)
    seen = simulate(work, SPEEDS, replicas=1000, max_running=1024, requests=200_000)
    assert seen.mean_request_s == pytest.approx(plan.request_s, rel=0.1)
    assert plan.busy_without_one == pytest.approx(plan.busy * 1000 / 999)


def test_limits() -> None:
    """The smallest limit is named, replicas are added for it, and what cannot be held is refused."""
    small = plan_fleet(WORK, SPEEDS, max_running=1024, pool_tokens=8_560)
    assert small.bottleneck == "the KV cache"
    assert small.highest_rate == pytest.approx(10 / SPEEDS.request_s(WORK, 10))
    assert small.needed == math.ceil(8 / (0.8 * small.highest_rate))
    assert small.busy < 0.8
    assert plan_fleet(WORK, SPEEDS, max_running=32).bottleneck == "the batch (max-num-seqs)"
    assert plan_fleet(WORK, SPEEDS, max_running=10_000).bottleneck == "the GPU's speed"
    assert not plan_fleet(WORK, SPEEDS, max_running=1024).beyond_measured
    assert plan_fleet(Work(33, 600, 256), SPEEDS, max_running=1024, replicas=1).beyond_measured
    assert plan_fleet(Work(1000, 600, 256), SPEEDS, max_running=1024, replicas=1).busy > 1
    with pytest.raises(ValueError, match="does not fit"):
        plan_fleet(WORK, SPEEDS, max_running=1024, pool_tokens=800)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two records of different loads, as arguments."""
    words, folder = [], tmp_path_factory.mktemp("records")
    for running in (8, 128):
        file = folder / f"{running}.json"
        file.write_text(record_of(running, folder).model_dump_json())
        words += ["--run", str(file)]
    return words


def test_command(records: list[str], root: Path) -> None:
    """`servekit plan --rate` prints the plan as text and as JSON."""
    words = ["plan", "--config", str(root / "vllm_config.yaml"), "--gpu", "l4", "--rate", "40", *records]
    text = CliRunner().invoke(command, words)
    assert text.exit_code == 0, text.output
    assert "needed" in text.stdout
    assert "first bottleneck" in text.stdout
    found = json.loads(CliRunner().invoke(command, [*words, "--replicas", "4", "--format", "json"]).stdout)["replicas"]
    assert found["plan"]["replicas"] == 4
    assert found["simulated"]["mean_request_s"] == pytest.approx(found["plan"]["request_s"], rel=0.05)


@pytest.mark.parametrize(("rate", "without"), [("0.1", "busy_without_one"), ("1e5", "running")])
def test_what_is_infinite_is_null_in_json(records: list[str], root: Path, rate: str, without: str) -> None:
    """A rate without its only replica, or a queue without end, is no number: other programs cannot read Infinity."""
    words = ["plan", "--config", str(root / "vllm_config.yaml"), "--gpu", "l4", *records, "--replicas", "1"]
    told = CliRunner().invoke(command, [*words, "--rate", rate, "--format", "json"]).stdout
    assert json.loads(told, parse_constant=pytest.fail)["replicas"]["plan"][without] is None


@pytest.mark.parametrize(("rate", "told"), [("inf", "--rate"), ("nan", "--rate"), ("1e300", "1,000 replicas")])
def test_command_refuses_rates_without_end(records: list[str], root: Path, rate: str, told: str) -> None:
    """Such a rate is the user's mistake: it is named, and nothing is simulated."""
    words = ["plan", "--config", str(root / "vllm_config.yaml"), "--gpu", "l4", "--rate", rate, *records]
    refused = CliRunner().invoke(command, words)
    assert isinstance(refused.exception, ConfigurationError) or refused.exit_code == 2
    assert told in f"{refused.exception}{refused.output}"


def test_command_says_what_is_missing(records: list[str], root: Path) -> None:
    """One record alone is an error that names the flag and what to do."""
    words = ["plan", "--config", str(root / "vllm_config.yaml"), "--gpu", "l4", "--rate", "40", *records[:2]]
    refused = CliRunner().invoke(command, words)
    assert isinstance(refused.exception, ConfigurationError)
    assert "--run: needs records of at least two loads" in str(refused.exception)
