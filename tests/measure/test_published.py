"""The published records: each follows from its trace, names no machine, and gives the tables of docs/results.md."""

import gzip
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.measure.report.runs import load_run, verify_run
from tests.conftest import ROOT
from tests.measure.replay import GPU, Run
from tests.measure.test_report import report, write

RECORDS = sorted((ROOT / "benchmarks" / "gpu" / "results" / "measure").glob("*.json"))
NAMES = re.compile(r"GPU-[0-9a-f]{8}-|/dev/|/home/|/root/|/tmp/|Linux \d|http://(?!127\.0\.0\.1)[^e]")
"""What would name a machine: a GPU's id, a folder, a kernel, an address."""


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_published_record_follows_from_its_trace(path: Path) -> None:
    """Every field is computed again, and neither the record nor its trace names the machine."""
    run = load_run(path)
    count, wrong = verify_run(run)
    assert count > 300
    assert wrong == []
    for text in (path.read_text(), gzip.decompress(path.with_name(run.record.trace.file).read_bytes()).decode()):
        assert NAMES.findall(text) == []


def test_the_tables_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `servekit report` in docs/results.md writes the table that follows it."""
    monkeypatch.chdir(ROOT)
    found = re.findall(r"(?m)^    servekit report (.*)\n\n((?:\|.*\n)+)", (ROOT / "docs" / "results.md").read_text())
    assert len(found) == 2
    for line, table in found:
        words = [path for word in shlex.split(line) for path in (sorted(map(str, Path().glob(word))) or [word])]
        assert report(*words).startswith(table)


def test_a_copy_for_others(tmp_path: Path) -> None:
    """A copy has the same figures and no GPU's id, folder, kernel or address; it verifies, and replaces nothing."""
    host = {"system": "Linux 6.1.0-99-host", "processor": "cpu", "cores": 8}
    identity = {
        "host": host,
        "endpoint": "http://10.1.2.3:8000/v1",
        "profile": "/srv/team/profile.yaml",
        "checkpoint": {"model": "/srv/team/models/W4A16", "bytes_on_disk": 1},
    }
    argv = ("/opt/engine/bin/vllm", "serve", "/srv/team/models/W4A16")
    path = write(tmp_path, Run(run_s=20, idle_s=1, gpus=(GPU, "GPU-99"), identity=identity, argv=argv))
    report(path, "--publish", str(tmp_path / "copies"))
    copy = load_run(tmp_path / "copies" / "run.json")
    assert verify_run(copy)[1] == []
    text = (
        copy.record.model_dump_json()
        + gzip.decompress((tmp_path / "copies" / "run.trace.jsonl.gz").read_bytes()).decode()
    )
    for name in (GPU, "GPU-99", "/srv", "/opt", "6.1.0", "10.1.2.3"):
        assert name not in text
    assert copy.record.identity.arguments == ["vllm", "serve", "W4A16"]
    assert copy.record.identity.endpoint == "http://endpoint:8000/v1"
    assert [gpu.uuid for gpu in copy.record.identity.gpus] == ["GPU-0", "GPU-1"]
    original = load_run(Path(path)).record
    assert copy.record.engine == original.engine
    assert (copy.record.run.work, copy.record.run.efficiency) == (original.run.work, original.run.efficiency)
    with pytest.raises(ConfigurationError, match=r"exists already; choose another folder"):
        CliRunner().invoke(command, ["report", path, "--publish", str(tmp_path / "copies")], catch_exceptions=False)
    both = ["report", path, "--baseline", path, "--publish", str(tmp_path / "both")]
    with pytest.raises(ConfigurationError, match=r"run.json: error: exists already"):
        CliRunner().invoke(command, both, catch_exceptions=False)


def test_a_trace_that_was_cut_off_is_not_published(tmp_path: Path) -> None:
    """What a killed `measure` left is reported, not published as if it were complete."""
    path = Run(exit_code=None, run_s=20).write(tmp_path / "left.trace.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigurationError, match=r"has a trace that was cut off"):
        CliRunner().invoke(command, ["report", str(path), "--publish", str(tmp_path / "x")], catch_exceptions=False)
