"""The record of a replayed run: figures, what is unknown, and its published schema."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from servekit.errors import ConfigurationError
from servekit.measure.figures.compute import compute_record
from servekit.measure.record import Record, record_schema
from servekit.measure.trace import TraceWriter, parse_page, read_trace
from tests.measure.replay import GPU, Run


def test_figures_of_a_run(tmp_path: Path) -> None:
    """Energy, work and their quotients are those of the load; tokens and requests per Wh have their own names."""
    record = Run(canaries=4).record(tmp_path)
    run = record.run
    assert run.duration_s == pytest.approx(600)
    assert run.energy.joules == pytest.approx(600 * 71.5, rel=1e-3)
    assert run.energy.above_idle_j == pytest.approx(600 * (71.5 - 16), rel=5e-3)
    assert run.energy.within_half_percent
    assert run.energy.gpus[0].disagreement == pytest.approx(0, abs=1e-3)
    assert run.work is not None
    assert run.work.model_dump() == {"output_tokens": 120_000, "prompt_tokens": 480_000, "requests": 600}
    found = run.efficiency
    assert found.j_per_output_token == pytest.approx(0.3575, rel=1e-3)
    assert found.j_per_total_token == pytest.approx(0.0715, rel=1e-3)
    assert found.j_per_request == pytest.approx(71.5, rel=1e-3)
    assert found.output_tokens_per_wh == pytest.approx(120_000 / (42_900 / 3600), rel=1e-3)
    assert found.requests_per_wh == pytest.approx(600 / (42_900 / 3600), rel=1e-3)
    assert run.efficiency_above_idle.j_per_request == pytest.approx(55.5, rel=5e-3)
    assert record.idle is not None
    assert record.idle.energy.mean_power_w == pytest.approx(16, rel=1e-2)
    assert record.disturbances == []


def test_counters_of_a_run(tmp_path: Path) -> None:
    """Outcomes, refusals, cache and latency are what the counters gained, without servekit's own canaries."""
    engine = Run(canaries=4).record(tmp_path).engine
    assert engine.why == ""
    assert engine.canaries == 4
    assert engine.requests == {"abort": 3, "length": 0, "stop": 600}
    assert engine.refused == {"too_busy": 7}
    assert (engine.preemptions, engine.prefix_cache_queries, engine.prefix_cache_hits) == (5, 1000, 250)
    first = engine.latency["time_to_first_token"]
    assert (first.count, first.mean_s) == (600, 0.2)
    assert (first.p50_s, first.p90_s, first.p95_s) == (0.1, 0.5, 0.75)
    assert engine.running is not None
    assert engine.running.highest == 8


def test_the_steady_window_leaves_out_filling_and_emptying(tmp_path: Path) -> None:
    """The steady window lasts from the first scrape with nine tenths of the requests to the last one."""

    def ramp(t: float, page: dict[str, str]) -> dict[str, str]:
        number = 8 * min(t / 100, 1, (600 - t) / 50) if 0 < t < 600 else 0
        return page | {'vllm:num_requests_running{engine="0",model_name="m"}': f"{number:.1f}"}

    record = Run(page=ramp).record(tmp_path)
    assert record.steady is not None
    assert record.steady.begin_s - 60 == pytest.approx(90, abs=1.1)
    assert record.steady.end_s - 60 == pytest.approx(555, abs=1.1)
    assert record.steady.work is not None
    assert record.steady.work.output_tokens == pytest.approx(200 * record.steady.duration_s, rel=1e-6)
    assert record.steady.energy.joules == pytest.approx(71.5 * record.steady.duration_s, rel=1e-3)
    assert record.run.duration_s == pytest.approx(600)


def test_without_a_gpu_everything_but_energy(tmp_path: Path) -> None:
    """Without NVML the record has the work and says that there is no energy; it is null, never zero."""
    record = Run(gpus=()).record(tmp_path)
    assert record.run.energy.joules is None
    assert record.run.energy.mean_power_w is None
    assert record.run.energy.why == "neither NVML nor servekit reports a GPU of this endpoint"
    assert set(record.run.efficiency.model_dump().values()) == {None}
    assert record.run.output_tokens_per_s == pytest.approx(200)


def test_two_gpus_are_added(tmp_path: Path) -> None:
    """The energy of an endpoint is that of all its GPUs."""
    record = Run(gpus=(GPU, "GPU-5678")).record(tmp_path)
    assert record.run.energy.joules == pytest.approx(2 * 600 * 71.5, rel=1e-3)
    assert [gpu.uuid for gpu in record.run.energy.gpus] == [GPU, "GPU-5678"]


def test_a_gpu_that_only_servekits_metrics_know(tmp_path: Path) -> None:
    """From another host the energy is that of servekit's own metrics, read once a second."""
    labels = f'{{gpu="{GPU}",name="NVIDIA L4"}}'

    def with_gpu(t: float, page: dict[str, str]) -> dict[str, str]:
        joules = 5e6 + 16 * min(t, 0) + 71.5 * min(max(t, 0), 600) + 16 * max(t - 600, 0)
        return page | {
            f"servekit_gpu_energy_joules_total{labels}": f"{joules:.3f}",
            f"servekit_gpu_power_watts{labels}": f"{71.5 if 0 < t <= 600 else 16.0}",
        }

    trace = Run(page=with_gpu).trace(tmp_path)
    trace.all("gpu").clear()
    record = compute_record(trace)
    assert record.run.energy.joules == pytest.approx(600 * 71.5, rel=2e-3)
    assert record.run.energy.within_half_percent
    assert record.trace.readings == 663


def test_a_lost_gpu_leaves_the_work(tmp_path: Path) -> None:
    """A GPU that is lost takes the energy with it, not the counters; the record says when."""
    record = Run(reading=lambda t, values: values if t < 400 else {}).record(tmp_path)
    assert record.run.energy.joules is None
    assert "came 200.1 s before the end" in record.run.energy.why
    assert record.run.work is not None
    (lost,) = [each for each in record.disturbances if each.kind == "gpu-unreadable"]
    assert lost.begin_s - 60 == pytest.approx(400, abs=0.2)


def test_a_restarted_engine_has_no_counters(tmp_path: Path) -> None:
    """When the engine's server is another one, its counters say nothing about the run, and the record says so."""

    def restart(t: float, page: dict[str, str]) -> dict[str, str] | None:
        if 200 < t < 290:
            return None
        return page | ({"process_start_time_seconds": "1.8e9"} if t >= 290 else {})

    record = Run(page=restart).record(tmp_path)
    assert record.run.work is None
    assert record.engine.why == "the engine restarted, and its counters with it"
    assert [each.kind for each in record.disturbances] == ["endpoint-silent", "engine-restart"]
    assert record.run.energy.joules is not None


def test_an_engine_that_died_has_no_counters(tmp_path: Path) -> None:
    """The last page before an engine died has not all of its work: it does not stand for the whole run."""
    record = Run(page=lambda t, page: page if t < 300 else None).record(tmp_path)
    assert record.run.work is None
    assert record.engine.why == "the engine's counters could not be read after the run"
    assert [each.kind for each in record.disturbances] == ["endpoint-silent"]
    assert record.steady is not None
    assert record.steady.work is not None, "until then everything is known"


def test_a_record_follows_its_schema(tmp_path: Path) -> None:
    """The published schema accepts a record, demands every field and allows no other."""
    schema = record_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    record = json.loads(Run(scores={"MMMU-Pro": 35.29}).record(tmp_path).model_dump_json())
    jsonschema.validate(record, schema)
    assert set(schema["required"]) >= set(record) - {"schema_version", "codecarbon"}, "older records have no codecarbon"
    for wrong in (record | {"more": 1}, {name: value for name, value in record.items() if name != "run"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    assert Record.model_validate(record).model_dump(mode="json") == record


def test_the_published_schema_is_the_records(root: Path) -> None:
    """docs/record.schema.json is what `servekit schema --record` prints."""
    assert json.loads((root / "docs" / "record.schema.json").read_text()) == record_schema()


def test_every_field_of_the_schema_is_described() -> None:
    """Each property whose name does not say everything has a description with its unit or its meaning."""
    units = re.compile(r"(_s|_j|_w|_c|_mhz|_bytes|joules|tokens|requests)$")
    for part in record_schema()["$defs"].values():
        assert part["description"]
    efficiency = record_schema()["$defs"]["Efficiency"]["properties"]
    assert all(units.search(name) or "_per_" in name for name in efficiency)


def test_a_trace_that_was_cut_off(tmp_path: Path) -> None:
    """A killed `measure` leaves a trace whose whole lines still make a record, which says that it was cut off."""
    path = Run(exit_code=None).write(tmp_path / "run.trace.jsonl.gz")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    trace = read_trace(path)
    assert not trace.complete
    record = compute_record(trace)
    assert 100 < record.run.duration_s < 600
    assert record.exit_code is None
    assert record.disturbances[0].kind == "cut-off"


def test_a_trace_in_progress_is_on_disk(tmp_path: Path) -> None:
    """What was written more than ten seconds ago survives a kill."""
    now = [0.0]
    writer = TraceWriter(tmp_path / "t.gz", lambda: now[0])
    writer.write("begin", format=1)
    for now[0] in range(25):
        writer.write("phase", phase=f"at {now[0]}")
    survived = read_trace(tmp_path / "t.gz")
    assert not survived.complete
    assert 10 <= survived.last_s <= 20
    writer.close()
    assert read_trace(tmp_path / "t.gz").last_s == 24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "has another format of trace (got None, this version reads 1)"),
        (gzip.compress(b"[1]\n", mtime=0), "is not a trace of servekit measure: list indices"),
        (gzip.compress(b'{"kind": "begin", "t": 0, "format": 9}\n', mtime=0), "has another format of trace (got 9"),
    ],
)
def test_a_file_that_is_no_trace(tmp_path: Path, content: bytes, message: str) -> None:
    """Other files are rejected with their name."""
    path = tmp_path / "other.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_pages_survive_as_differences(tmp_path: Path) -> None:
    """Each page can be had again from the differences: changed, new and vanished samples."""
    pages: list[dict[str, Any]] = [
        parse_page('# HELP a\na 1.0\nb{x="1 2"} 2.0\n'),
        {"a": "1.0", "c": "3.0"},
        {"a": "5.0", "c": "3.0", 'b{x="1 2"}': "7.0"},
    ]
    now = [0.0]
    writer = TraceWriter(tmp_path / "t.gz", lambda: now[0])
    writer.write("begin", format=1)
    for number, page in enumerate(pages, 1):
        now[0] = float(number)
        writer.write_scrape(number - 0.5, page)
    writer.write_scrape(9, None)
    writer.close()
    trace = read_trace(tmp_path / "t.gz")
    assert pages[0] == {"a": "1.0", 'b{x="1 2"}': "2.0"}
    assert trace.pages_at(0.5, 1, 2.9, 3, 99) == [{}, *pages, pages[2]]
