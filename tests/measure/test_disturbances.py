"""What disturbs a run is in its record, with its time; a quiet run has nothing."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.measure.replay import Run

MIB = 1 << 20


def test_a_quiet_run_is_undisturbed(tmp_path: Path) -> None:
    """Clocks that rise with the load, and a command that ends well, are no disturbances."""
    assert Run().record(tmp_path).disturbances == []


def throttled(t: float, values: dict[str, Any]) -> Mapping[str, Any]:
    """Slow down in two spans."""
    hot = 100 <= t <= 110 or 200 <= t <= 220
    return values | ({"slowdowns": ["hardware thermal slowdown"]} if hot else {})


def limited(t: float, values: dict[str, Any]) -> Mapping[str, Any]:
    """Lower the power limit at second 300."""
    return values | {"power_limit_w": 60.0 if t >= 300 else 72.0}


def memory_clock(t: float, values: dict[str, Any]) -> Mapping[str, Any]:
    """Lower the memory clock at second 300."""
    return values | ({"memory_clock_mhz": 5_001} if 300 <= t < 600 else {})


def sm_clock(t: float, values: dict[str, Any]) -> Mapping[str, Any]:
    """Lower the SM clock in the second half."""
    return values | ({"sm_clock_mhz": 1_100} if 300 <= t < 600 else {})


def sensor(_: float, values: dict[str, Any]) -> Mapping[str, Any]:
    """Report a power that is 5 % too high."""
    return values | {"power_instant_w": values["power_instant_w"] * 1.05}


def counter(t: float, values: dict[str, Any]) -> Mapping[str, Any]:
    """Restart the energy counter at second 300."""
    return values | ({"energy_j": values["energy_j"] - 1_000_000 - 60 * 16 - 300 * 71.5} if t >= 300 else {})


@pytest.mark.parametrize(
    ("reading", "kind", "what", "spans"),
    [
        (throttled, "slowdown", "GPU-1234: hardware thermal slowdown", [(100, 110), (200, 220)]),
        (limited, "power-limit-changed", "the power limit changed from 72 W to 60 W", [(300, 300)]),
        (memory_clock, "clock-changed", "the memory clock changed from 6,251 MHz to 5,001 MHz", [(300, 300)]),
        (sm_clock, "clock-changed", "medians by quarters were 1,350, 1,350, 1,100, 1,100 MHz", [(1, 599)]),
        (sensor, "energy-disagrees", "the integral of power differs by +5.0%", [(0, 600)]),
        (counter, "counter-reset", "the energy counter fell from", [(300, 300)]),
    ],
)
def test_disturbances_of_the_gpu(
    tmp_path: Path, reading: Any, kind: str, what: str, spans: list[tuple[float, float]]
) -> None:
    """Throttling, a changed limit or clock, a wrong sensor and a restarted counter are told with their time."""
    found = Run(reading=reading).record(tmp_path).disturbances
    assert {each.kind for each in found} == {kind}
    assert all(what in each.what for each in found)
    told = [moment - 60 for each in found for moment in (each.begin_s, each.end_s)]
    assert told == pytest.approx([moment for span in spans for moment in span], abs=0.2)


def test_gaps_in_the_trace(tmp_path: Path) -> None:
    """Readings that are missing for more than a hundredth of the run are told, with their number and length."""

    def missing(t: float, values: dict[str, Any]) -> Mapping[str, Any]:
        return {} if 100 < t < 104 or 200 < t < 205 else values

    record = Run(reading=missing).record(tmp_path)
    (gaps,) = [each for each in record.disturbances if each.kind == "trace-gaps"]
    assert gaps.what == "GPU-1234: 2 gaps in the power trace, 9 s in all"
    assert record.run.energy.within_half_percent, "the counter has the energy all the same"


def test_foreign_processes(tmp_path: Path) -> None:
    """A process of somebody else is told from when it came to when it went, or to the end."""
    others = [(-30.0, {"41": 512 * MIB}), (100.0, {"41": 512 * MIB, "42": 2048 * MIB}), (160.0, {"41": 512 * MIB})]
    found = Run(others=others).record(tmp_path).disturbances
    assert [(each.kind, each.begin_s, each.end_s) for each in found] == [
        ("foreign-process", 30, 660),
        ("foreign-process", 160, 220),
    ]
    assert found[1].what == "process 42 used GPU-1234, 2,048 MiB when it was seen first"


def test_work_before_and_after(tmp_path: Path) -> None:
    """Requests of others before the command, while the GPU should be idle and after the end, are told."""
    tokens, running = (
        f'vllm:{name}{{engine="0",model_name="m"}}' for name in ("generation_tokens_total", "num_requests_running")
    )

    def busy(t: float, page: dict[str, str]) -> dict[str, str]:
        return page | {running: "8.0" if 0 < t < 600 else "2.0", tokens: f"{float(page[tokens]) + 10 * (t + 60):.1f}"}

    found = {each.kind: each.what for each in Run(page=busy).record(tmp_path).disturbances}
    assert found == {
        "not-empty-before": "2 requests were there before the command",
        "not-empty-after": "2 requests were there after its end",
        "not-idle": "the engine generated 600 tokens for clients while it should have been idle",
    }


def test_the_command(tmp_path: Path) -> None:
    """A command that failed is told, with its exit code in the record."""
    record = replace(Run(), exit_code=3).record(tmp_path)
    assert [each.what for each in record.disturbances] == ["the command ended with exit code 3"]
    assert record.exit_code == 3
