"""The records of the proof on a GPU: from a run on this machine, or from an earlier run that GPU_RECORDS names."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.host.gpus import survey_gpus
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed package

from benchmarks.gpu.setting import STAGES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the records; taking the records takes forty minutes."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and "record" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Return a stage's record by its name."""
    given = os.environ.get("GPU_RECORDS")
    if given is None and (reason := why_not_here()):
        pytest.skip(reason)
    folder = Path(given) if given else take_records(tmp_path_factory.mktemp("gpu"))

    def read(stage: str) -> dict[str, Any]:
        path = folder / f"{stage}.json"
        assert path.exists(), f"{folder} has no record of the stage {stage}: python -m benchmarks.gpu {stage} takes it"
        values = json.loads(path.read_text())
        assert isinstance(values, dict)
        return values

    return read


def why_not_here() -> str:
    """Return why the records cannot be taken on this machine; empty if they can."""
    survey = survey_gpus()
    if survey is None or not survey.gpus:
        return "no NVIDIA GPU answers here; GPU_RECORDS=FOLDER judges the records of a run on another machine"
    if shutil.which("vllm") is None:
        return "no `vllm` on the PATH: this needs the CUDA build of vLLM 0.20.2"
    return ""


def take_records(folder: Path) -> Path:
    """Write both checkpoints and run every stage."""
    for name, flags in (("w4a16", []), ("bf16", ["--bf16"])):
        servekit = [sys.executable, "-m", "servekit.cli.main", "demo-model", "--size", "e4b"]
        subprocess.run([*servekit, *flags, str(folder / name)], check=True)
    shared = ["--out", str(folder), "--cache", str(folder / "cache")]
    models = ["--w4a16", str(folder / "w4a16"), "--bf16", str(folder / "bf16")]
    measure = [sys.executable, "-m", "benchmarks.gpu"]
    for stage in STAGES:
        subprocess.run([*measure, stage, *shared, *models], cwd=ROOT, check=True)
    return folder
