"""`servekit report`: the card's table from records, rules that runs break, and the check against the raw trace."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.measure.figures.compute import compute_record
from servekit.measure.trace import read_trace
from tests.measure.replay import Run

QUESTIONS = 3_460
FP16 = Run(
    name="FP16",
    interval_s=1.0,
    run_s=17_870,
    run_w=1_285_158 / 17_870,
    requests=QUESTIONS,
    output_tokens=485 * QUESTIONS,
    scores={"MMMU-Pro": 38.21, "MMMU-Pro standard": 44.22},
    identity={"checkpoint": {"model": "google/gemma-4-E4B-it", "bytes_on_disk": 14_920_000_000}},
)
OPTIMIZED = Run(
    name="gemma4-E4B-opt",
    interval_s=1.0,
    run_s=1_057,
    run_w=75_550 / 1_057,
    requests=QUESTIONS,
    output_tokens=511 * QUESTIONS,
    scores={"MMMU-Pro": 35.29, "MMMU-Pro standard": 40.81},
    identity={"checkpoint": {"model": "salve-mundii/gemma4-E4B-opt", "bytes_on_disk": 9_330_000_000}},
)


def write(folder: Path, run: Run, file: str = "") -> str:
    """Write the trace and the record of a run; return the record's path."""
    name = file or run.name
    trace = run.write(folder / f"{name}.trace.jsonl.gz")
    path = folder / f"{name}.json"
    path.write_text(compute_record(read_trace(trace)).model_dump_json(indent=2))
    return str(path)


def report(*words: str) -> str:
    """Run the command and return its output."""
    ended = CliRunner().invoke(command, ["report", *words], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def table(text: str) -> dict[str, list[str]]:
    """Return the cells of a Markdown table by the label of their row."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_cards_figures_give_the_cards_table(tmp_path: Path) -> None:
    """Energy, time, questions and sizes of the model card give its differences; tokens and requests are told apart.

    The card's "tokens per Wh" of 9.7 and 164.9 are requests per Wh.
    """
    words = [write(tmp_path, OPTIMIZED), "--baseline", write(tmp_path, FP16), "--format", "markdown"]
    cells = table(report(*words))
    assert cells["Requests per Wh"] == ["9.692", "164.9", "17.0x"]
    assert cells["Output tokens per Wh"] == ["4,701", "84,250", "17.9x"]
    assert cells["Energy of the run, J"] == ["1,285,158", "75,550", "-94.1 %"]
    assert cells["Wall-clock of the run, s"] == ["17,870", "1,057", "16.9x faster"]
    assert cells["Average GPU power, W"] == ["71.9", "71.5", "≈ equal (-0.6 %)"]
    assert cells["Checkpoint on disk, GB"] == ["14.92", "9.33", "-37.5 %"]
    assert cells["MMMU-Pro, %"] == ["38.21", "35.29", "-2.92 pp (-7.64 % relative)"]
    assert cells["MMMU-Pro standard, %"][2].startswith("-3.41 pp")
    assert cells["Output tokens per request"] == ["485.0", "511.0", "+5.4 %"]


def test_repetitions_have_a_median_and_a_spread(tmp_path: Path) -> None:
    """Runs of one name are one column with median, least and greatest value."""
    runs = [write(tmp_path, replace(Run(), run_w=watts), f"run{watts}") for watts in (70.0, 71.0, 74.0)]
    assert table(report(*runs, "--format", "markdown"))["Average GPU power, W"] == ["71.0 (70.0 to 74.0)"]
    found = json.loads(report(*runs, "--baseline", runs[0], "--format", "json"))
    (power,) = [row["values"] for row in found["rows"] if row["figure"] == "Average GPU power, W"]
    assert power[1]["runs"] == pytest.approx([70, 71, 74], rel=1e-3)
    assert power[1]["median"] == pytest.approx(71, rel=1e-3)
    assert power[1]["factor"] == pytest.approx(71 / 70, rel=1e-3)


def test_runs_that_break_a_rule_are_shown_with_it(tmp_path: Path) -> None:
    """A short, throttled run without idle reading is in the table, and the rules it breaks are below."""

    def hot(_: float, values: dict[str, object]) -> dict[str, object]:
        return values | {"slowdowns": ["hardware slowdown"]}

    text = report(write(tmp_path, Run(name="short", run_s=20, idle_s=0, reading=hot)), write(tmp_path, Run()))
    for rule in (
        "short.json: shorter than 600 s: 20 s",
        "short.json: idle power read for 0 s instead of 60 s",
        "short.json: throttled: GPU-1234: hardware slowdown",
        "short.json: the energy is not certain to 0.5 %: the readings leave an error of up to",
    ):
        assert rule in text
    assert "run.json" not in text, "the long run breaks none"
    assert "Output tokens per Wh" in text


def test_disturbances_and_differences_are_shown(tmp_path: Path) -> None:
    """Runs of one name with other engine arguments, and a foreign process, are named below the table."""
    first = write(tmp_path, Run(others=[(10.0, {"42": 1 << 30})]), "first")
    second = write(tmp_path, Run(argv=("vllm", "serve", "other", "--port", "1")), "second")
    text = report(first, second)
    assert "first.json: foreign-process: process 42 used GPU-1234, 1,024 MiB when it was seen first" in text
    assert "run: engine arguments" in text


def test_runs_without_energy_have_the_other_rows(tmp_path: Path) -> None:
    """Without NVML the table has throughput and says that there is no energy."""
    text = report(write(tmp_path, Run(gpus=())))
    assert "no energy: neither NVML nor servekit reports a GPU" in text
    assert "J per output token" not in text
    assert "Output tokens per s" in text


def test_ports_are_no_difference(tmp_path: Path) -> None:
    """Two starts of one configuration on different ports are one configuration."""
    argv = ("/a/vllm", "serve", "m", "--port", "{}", "--max-num-seqs", "8")
    runs = [write(tmp_path, Run(argv=[word.format(port) for word in argv]), f"on{port}") for port in (8000, 8001)]
    assert "Differences" not in report(*runs)


def test_verify_computes_every_field_again(tmp_path: Path) -> None:
    """An untouched record passes; whichever field is changed, the check names it with both values."""
    path = write(tmp_path, Run(canaries=1))
    ended = CliRunner().invoke(command, ["report", path, "--verify"], catch_exceptions=False)
    assert "fields follow from the raw trace" in ended.stderr
    record = json.loads(Path(path).read_text())
    changes = {
        "run.energy.joules": ("run", "energy", "joules", 1.0),
        "engine.requests.stop": ("engine", "requests", "stop", 601),
        "identity.vllm": ("identity", "vllm", "0.0"),
        "scores.MMMU": ("scores", "MMMU", 99.0),
        "disturbances.0.kind": ("disturbances", [{"kind": "none", "begin_s": 0.0, "end_s": 0.0, "what": ""}]),
        "trace.sha256": ("trace", "sha256", "0" * 64),
    }
    for key, (*names, last, value) in changes.items():
        changed = json.loads(json.dumps(record))
        part = changed
        for name in names:
            part = part[name]
        part[last] = value
        Path(path).write_text(json.dumps(changed))
        with pytest.raises(ConfigurationError) as caught:
            CliRunner().invoke(command, ["report", path, "--verify"], catch_exceptions=False)
        assert key in {finding.key for finding in caught.value.findings}


def test_a_trace_alone_is_a_run(tmp_path: Path) -> None:
    """What a killed `measure` left behind can be reported; a trace that ends before the command cannot."""
    path = Run(exit_code=None).write(tmp_path / "left.trace.jsonl.gz")
    text = report(str(path), "--verify")
    assert "cut-off: servekit measure was killed" in text
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).split(b'"phase": "run"')[0]))
    with pytest.raises(ConfigurationError, match="ends before the command began"):
        CliRunner().invoke(command, ["report", str(path)], catch_exceptions=False)


def test_files_that_are_no_records(tmp_path: Path) -> None:
    """A file that is no record is rejected with the field that is wrong."""
    path = tmp_path / "x.json"
    for text, key in (("{}", "name"), ("[]", ""), ("no json", "")):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=r"is not a record of servekit measure") as caught:
            CliRunner().invoke(command, ["report", str(path)], catch_exceptions=False)
        assert caught.value.findings[0].key == key
    with pytest.raises(FileNotFoundError):
        CliRunner().invoke(command, ["report", str(tmp_path / "absent.json")], catch_exceptions=False)
