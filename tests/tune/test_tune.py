"""`servekit tune` as a program: what it would do, what it refuses, and real starts of `servekit serve`."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from servekit.cli.main import command
from servekit.cli.tuning import _words
from servekit.errors import ConfigurationError, PreflightError
from servekit.nvml import GpuFacts, GpuSurvey, Nvml
from servekit.profile import load_profile
from servekit.serve.plan import build_plan
from servekit.settings import Settings, Target
from servekit.tune.candidates import Candidate, LeftOut
from servekit.tune.preparation import _planned
from servekit.tune.trial_run import Runner
from tests.conftest import find_free_port
from tests.harness.endpoint import SERVEKIT, clean_environment
from tests.harness.processes import all_processes, command_line

STAND_IN = Path(__file__).with_name("stand_in_vllm.py")
LOADS = ("--goal", "latency", "--loads", "text", "--streams", "2", "--seconds", "1", "--warm-up-s", "0")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder, so that the demo checkpoint is built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def given(root: Path, cache: Path, tmp_path: Path) -> list[str]:
    """The flags of a search on the stand-in, which takes no memory, with ports of its own."""
    engine = tmp_path / "vllm"
    engine.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    engine.chmod(0o755)
    ports = ("--port", str(find_free_port()), "--observe-port", str(find_free_port()))
    places = ("--config", str(root / "vllm_config.yaml"), "--dir", str(tmp_path / "out"), "--cache-dir", str(cache))
    return ["tune", "--target", "cpu", "--engine", str(engine), "--skip", "cpu-memory", *ports, *places]


def tune(words: list[str], *more: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(command, [*words, *more], catch_exceptions=False)


def test_a_dry_run_changes_nothing(given: list[str], tmp_path: Path) -> None:
    """It prints each candidate with its reason, what is not tried, and how long the search takes."""
    ended = tune(given, "--dry-run", "--budget", "90min")
    assert ended.exit_code == 0, ended.output
    assert "batched-8192: max-num-batched-tokens: 8192\n    more tokens in a step" in ended.output
    assert "the plan has a KV cache of 312,671 tokens instead of 382,803" in ended.output
    assert "not tried: graphs: this engine captures no CUDA graphs" in ended.output
    assert "final: 2 rounds, each of 4 started once" in ended.output
    assert "about 1 h 5 min: 8 starts, each with 2 loads" in ended.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "soon"), "must be a duration such as 2h, 90min or 1h30m (got soon)"),
        (("--loads", "audio"), "--loads: must be one of text, images-1, images-3 (got audio)"),
    ],
)
def test_wrong_flags(given: list[str], words: tuple[str, ...], message: str) -> None:
    """A flag that cannot be understood is rejected with what it may be."""
    assert message in tune(given, *words).output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--goal", "energy"), r"--goal: needs an NVIDIA GPU: energy is not measured here \(got energy\)"),
        (("--budget", "5min"), r"--budget: two candidates, 2 starts each, take about .* \(got 5 min\); give more"),
        (("--observe-port", "0"), "--observe-port: any port: unknown here"),
    ],
)
def test_what_cannot_be_measured(given: list[str], words: tuple[str, ...], message: str) -> None:
    """Where a search makes no sense it says so before the first start."""
    with pytest.raises(ConfigurationError, match=message):
        tune(given, *words)


def test_own_candidates_are_checked_all_at_once(given: list[str], tmp_path: Path, root: Path) -> None:
    """A file that breaks the contract, and one without a key of the profile, are rejected by name before any start."""
    text = (root / "vllm_config.yaml").read_text()
    (tmp_path / "few.yaml").write_text(text.replace("max-num-seqs: 1024", "max-num-seqs: 256"))
    (tmp_path / "less.yaml").write_text(text.replace("max-num-batched-tokens: 4096", ""))
    own = [word for name in ("few", "less", "gone") for word in ("--candidate", str(tmp_path / f"{name}.yaml"))]
    with pytest.raises(ConfigurationError) as error:
        tune(given, *own)
    found = [(Path(each.file).name, each.key) for each in error.value.findings]
    assert found == [("few.yaml", "max-num-seqs"), ("less.yaml", "max-num-batched-tokens"), ("gone.yaml", "")]


def test_a_port_that_is_taken(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A search on the port of something that runs starts nothing, and says who has it and what to do."""
    monkeypatch.setattr("servekit.tune.trial_run._FREE_S", 0)
    port = int(given[given.index("--port") + 1])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PreflightError, match=r"cannot listen .*stop that"):
        tune(given, *LOADS, "--budget", "2h")


class BusyGpu(Nvml):
    """NVML with one L4 that another process uses."""

    def survey(self) -> GpuSurvey:
        """Return the GPU."""
        gpu = GpuFacts(0, "GPU-1", "NVIDIA L4", 24 << 30, 20 << 30, (8, 9), processes={4711: 1 << 30})
        return GpuSurvey("580.95.05", (13, 0), (gpu,))


def test_a_gpu_that_is_used(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running endpoint is not disturbed: what uses the GPU is named, and nothing starts beside it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = BusyGpu()
    settings = Settings(target=Target.CUDA, state_dir=tmp_path, port=find_free_port(), observe_port=find_free_port())
    plan = build_plan(load_profile(root / "vllm_config.yaml"), settings, {}, survey=nvml.survey)
    runner = Runner(
        words=lambda _: (), goal="throughput", plan=plan, loads=(), warm_up_s=0, observe_url="", keys=str, report=print,
        nvml=nvml,
    )  # fmt: skip
    with pytest.raises(PreflightError, match=r"NVIDIA L4: used by another process \(pid 4711\); stop it first"):
        runner.refuse_taken()
    idle = replace(nvml.survey().gpus[0], processes={})
    monkeypatch.setattr(BusyGpu, "survey", lambda _: GpuSurvey("580.95.05", (13, 0), (idle,)))
    runner.refuse_taken()


def test_the_flags_of_a_start() -> None:
    """Each start gets the operator's flags, but for the profile, the state folder and a setting that is tried."""
    flags: Mapping[str, object] = {
        "config": Path("mine.yaml"), "state_dir": Path("/var/lib/s"), "no_auth": True, "port": "8001", "model": None,
        "skip": ("a", "b"), "hang_s": 0, "embeddings": "auto",
    }  # fmt: skip
    words = _words(flags, Candidate("c", "r", settings={"embeddings": "host"}), Path("/tune/state"))
    expected = "--state-dir /tune/state --no-auth --port 8001 --skip a --skip b --hang-s 0"
    assert words == expected.split()


@pytest.mark.timeout(1200)
def test_real_starts_killed_and_continued(
    given: list[str], root: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """The search is killed while its second endpoint runs, which ends with it; the next one finds the best profile."""
    for tokens in (8192, 16384):
        text = (root / "vllm_config.yaml").read_text()
        path = tmp_path / f"b{tokens}.yaml"
        path.write_text(text.replace("max-num-batched-tokens: 4096", f"max-num-batched-tokens: {tokens}"))
        given += ["--candidate", str(path)]
    argv = [sys.executable, *SERVEKIT, *given, *LOADS, "--rounds", "1"]
    runs, port = tmp_path / "out" / "runs", given[given.index("--port") + 1]

    def endpoints() -> list[str]:
        """Return the processes of endpoints below this search."""
        lines = [command_line(pid) for pid in all_processes()]
        return [line for line in lines if f"--port {port} " in line and " serve " in line]

    def begun() -> bool:
        """Return whether one start is over and the engine of another one runs."""
        over = [*runs.glob("*/run.json")]
        return bool(over) and any("stand_in_vllm" in line for line in endpoints())

    with subprocess.Popen(argv, env=clean_environment(), stderr=subprocess.PIPE, text=True) as first:
        eventually(begun, within_s=120, what="the second start")
        first.kill()
        first.wait()
    eventually(lambda: not endpoints(), within_s=60, what="the end of its endpoint")
    before = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/run.json")}

    ended = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr
    assert {name: (runs / name / "run.json").stat().st_mtime_ns for name in before} == before, "none is made again"
    assert sorted(path.name for path in runs.iterdir()) == ["0-1-as-it-is", "0-1-b16384", "0-1-b8192"]
    assert "b8192      0.5     -50.0 %" in ended.stdout
    assert "b16384 failed: servekit serve ended with exit code 4" in ended.stdout
    assert "OutOfMemoryError" in ended.stdout
    best = load_profile(tmp_path / "out" / "best.yaml")
    assert best.arguments["max-num-batched-tokens"] == 8192
    assert "seconds per request: 0.5 instead of 1, -50.0 %" in best.path.read_text()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["winner"] == "b8192"

    changed = subprocess.run(
        [*argv, "--seconds", "2"], env=clean_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert changed.returncode == 2
    assert "this search was begun with other seconds: 1.0 (got 2.0)" in changed.stderr


@pytest.mark.timeout(600)
def test_ctrl_c_stops_the_endpoint(given: list[str], tmp_path: Path, eventually: Callable[..., None]) -> None:
    """SIGINT drains what runs, keeps what is done, and the exit code is that of an interruption."""
    argv = [sys.executable, *SERVEKIT, *given, *LOADS, "--rounds", "1"]
    log = tmp_path / "out" / "runs"
    with subprocess.Popen(argv, env=clean_environment(), stderr=subprocess.PIPE, text=True) as started:
        eventually(lambda: [*log.glob("*.part/serve.log")], within_s=180, what="the first start")
        os.kill(started.pid, signal.SIGINT)
        _, said = started.communicate(timeout=250)
    assert started.returncode == 130, said
    assert "tune: interrupted; the same command goes on with what is in" in said
    port = given[given.index("--port") + 1]
    mark = f"--port {port} "
    eventually(lambda: not any(mark in command_line(pid) for pid in all_processes()), within_s=60, what="their end")


def test_what_changes_nothing_here_is_not_started(root: Path, tmp_path: Path) -> None:
    """A setting whose value is what `auto` comes to on this host is told, not measured."""
    settings = Settings(target=Target.CPU, cache_dir=tmp_path, state_dir=tmp_path)
    profile = load_profile(root / "vllm_config.yaml")
    base = build_plan(profile, settings, os.environ)
    same = Candidate("target-cpu", "the same target", settings={"target": "cpu"})
    found = _planned(same, profile, settings, tmp_path, base, None)
    assert found == LeftOut("target-cpu", "is what the profile as it is comes to here")
    other = Candidate("batched-8192", "more", {"max-num-batched-tokens": 8192})
    assert _planned(other, profile, settings, tmp_path, base, None) != found
