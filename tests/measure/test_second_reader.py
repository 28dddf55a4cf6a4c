"""`servekit measure --codecarbon`: a second reader of the same counter, and what its figures say."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ConfigurationError
from servekit.measure.recording.session import measure
from servekit.nvml import Nvml
from tests.fake_nvml import FakeNvml
from tests.measure.replay import Run
from tests.measure.site import Site, running_site
from tests.measure.test_session import GPU_PAGE, L4, job

TRUE_J = 71.5 * 600


@pytest.fixture
def site() -> Iterator[Site]:
    """A server that counts."""
    with running_site() as site:
        site.extra += GPU_PAGE
        yield site


@pytest.mark.parametrize(("share", "told"), [(1.001, []), (0.9, ["codecarbon-disagrees"])])
def test_its_energy_stands_beside_the_counters(tmp_path: Path, share: float, told: list[str]) -> None:
    """The record has both energies of the same time; a difference of more than 2 % disturbs the run."""
    record = Run(codecarbon={"joules": share * TRUE_J}).record(tmp_path)
    assert record.codecarbon is not None
    assert record.codecarbon.counter_j == pytest.approx(TRUE_J, rel=1e-3)
    assert record.codecarbon.disagreement == pytest.approx(share - 1, abs=1e-3)
    assert [each.kind for each in record.disturbances] == told


def test_what_it_could_not_read(tmp_path: Path) -> None:
    """Without a result there is no energy of it, and what it logs about a GPU is told."""
    warning = "Failed to read the energy counter of GPU 0"
    record = Run(codecarbon={"joules": None, "warnings": [warning]}).record(tmp_path)
    assert record.codecarbon is not None
    assert (record.codecarbon.joules, record.codecarbon.disagreement) == (None, None)
    assert [each.what for each in record.disturbances] == [
        f"CodeCarbon read nothing, the energy counter {TRUE_J:,.0f} J",
        warning,
    ]


def test_without_codecarbon_or_a_gpu(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command that installs it, before anything is measured."""
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(ConfigurationError, match=r"--codecarbon: CodeCarbon is not installed; .*\.\[codecarbon\]"):
        measure(job(tmp_path, site, 1, 0, 0, codecarbon_s=15.0), nvml=Nvml(L4()))
    with pytest.raises(ConfigurationError, match=r"NVML reads no GPU of this endpoint here"):
        measure(job(tmp_path, site, 1, 0, 0, codecarbon_s=15.0), nvml=Nvml(FakeNvml(nvmlInit=9)))
    assert list(tmp_path.iterdir()) == []
    assert site.requests == 0


PROGRAM = """
import inspect, sys
from pathlib import Path
from types import SimpleNamespace
import pynvml
from servekit.measure.recording.session import measure
from servekit.nvml import Nvml
from servekit.measure.recording.session import measure
from tests.measure.test_session import L4, job

class Card(L4):
    failing = False
    def _nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.failing:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)
        return super()._nvmlDeviceGetTotalEnergyConsumption(handle)
    def _nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=50)
    def _nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        return []
    def _nvmlDeviceGetComputeMode(self, handle):
        return 0
    def _nvmlDeviceGetPowerUsage(self, handle):
        return 70_000

card, broken = Card(), Card()
for name, function in inspect.getmembers(pynvml, inspect.isfunction):
    if name.startswith("nvml") and name[4].isupper():
        setattr(pynvml, name, getattr(broken, name))
broken.failing = sys.argv[3] == "failing"
site = SimpleNamespace(url=sys.argv[1])
record, code = measure(job(Path(sys.argv[2]), site, 1, 4, 0, codecarbon_s=0.5), nvml=Nvml(card))
assert code == 0
print(record.codecarbon.model_dump_json())
"""


@pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None,
    reason="needs CodeCarbon: pip install -r requirements/codecarbon.txt",
)
@pytest.mark.parametrize("case", ["sound", "failing", "without nvidia-smi"])
def test_the_real_codecarbon(tmp_path: Path, site: Site, case: str) -> None:
    """CodeCarbon finds the same energy, says where it must use the power instead, and nothing without nvidia-smi."""
    out, programs = tmp_path / "out", tmp_path / "programs"
    for folder in (out, programs):
        folder.mkdir()
    if case != "without nvidia-smi":
        (programs / "nvidia-smi").write_text("#!/bin/sh\n")
        (programs / "nvidia-smi").chmod(0o755)
    words = [sys.executable, "-c", PROGRAM, site.url, str(out), case]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(words, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert found["version"].startswith("3.")
    assert found["counter_j"] > 70 * 4
    wanted = None if case == "without nvidia-smi" else pytest.approx(found["counter_j"], rel=0.1)
    assert found["joules"] == wanted
    assert any("counter" in line for line in found["warnings"]) == (case == "failing")
    assert sorted(path.name for path in out.iterdir()) == ["n.json", "n.trace.jsonl.gz"]
