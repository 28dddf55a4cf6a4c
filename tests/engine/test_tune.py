"""`servekit tune` on the real engine: two profiles whose order follows from the number of steps, not from timing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from servekit.measure.report.runs import load_run, verify_run
from servekit.profile import load_profile
from tests.harness.endpoint import SERVEKIT, clean_environment
from tests.harness.ports import free_port
from tests.harness.server import ENGINE, ROOT

KEY = "long-prefill-token-threshold"
"""Most tokens of one prompt in a step; 0: no limit. With 1, the 512 tokens of a prompt take as many steps, before the
256 steps of an answer: three times as many steps in all."""


@pytest.mark.timeout(1800)
def test_the_faster_profile_wins(engine_cache: Path, tmp_path: Path) -> None:
    """The profile as it is reads a token a step, the candidate whole prompts: it wins, and its profile is written."""
    text = (ROOT / "vllm_config.yaml").read_text()
    for name, value in {"slow": 1, "fast": 0}.items():
        (tmp_path / f"{name}.yaml").write_text(f"{text}\n# How a prompt is read.\n{KEY}: {value}\n")
    profiles = ("--config", str(tmp_path / "slow.yaml"), "--candidate", str(tmp_path / "fast.yaml"))
    ports = ("--port", str(free_port()), "--observe-port", str(free_port()))
    fixed = ("--target", "cpu", "--engine", str(ENGINE), "--cache-dir", str(engine_cache), *ports)
    loads = ("--goal", "latency", "--loads", "text", "--streams", "1", "--seconds", "1", "--warm-up-s", "0")
    argv = [
        sys.executable,
        *SERVEKIT,
        "tune",
        *fixed,
        *profiles,
        *loads,
        "--rounds",
        "1",
        "--dir",
        str(tmp_path / "tune"),
    ]
    ended = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, timeout=1700, check=False)
    assert ended.returncode == 0, ended.stderr

    report = json.loads((tmp_path / "tune" / "report.json").read_text())
    fast = next(each for each in report["finalists"] if each["name"] == "fast")
    assert (report["winner"], report["failed"]) == ("fast", {})
    assert fast["ratio"] < 0.6
    assert "fast leads" in ended.stdout
    best = load_profile(tmp_path / "tune" / "best.yaml")
    assert best.arguments[KEY] == 0
    assert "measured once" in best.path.read_text()
    records = sorted((tmp_path / "tune" / "runs").glob("*/text-1-sampled.json"))
    assert [path.parent.name for path in records] == ["0-1-as-it-is", "0-1-fast"]
    for path in records:
        run = load_run(path)
        assert verify_run(run)[1] == []
        assert run.record.identity.contract.met
