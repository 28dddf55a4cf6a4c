"""`servekit quantize`: what it checks before it starts the recipe, and the recipe itself where it is installed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from servekit.recipe.agreement import Endpoint as Served
from servekit.recipe.agreement import compare, read_prompts, record
from servekit.recipe.card import write_card
from tests.conftest import ROOT
from tests.engine.conftest import make_endpoint
from tests.recipe.conftest import write_rows

RECIPE_PYTHON = ROOT / ".venv-recipe" / "bin" / "python"
HERE = Path(__file__).parent
QUANTIZE = (sys.executable, "-m", "servekit.cli.main", "quantize")
SAMPLES = 128
BASELINE = ("--config", "profiles/fp16-baseline.yaml", "--deviate", "quantization", "--deviate", "kv-cache-dtype")
KL_BOUND = 0.38
"""Nats; 0.28 was measured, and 0.40 with rounding to the nearest."""


def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a command in the repository's root, one thread for each program: results do not depend on the cores."""
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, words)], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """No environment, an OUT that exists and rows that are wrong are all named, with file and line."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\nnot json\n{"messages": [{"role": "user"}]}\n')
    done = run(*QUANTIZE, tmp_path, tmp_path, "--calibration", rows, "--python", tmp_path / "none")
    assert done.returncode == 2
    for words in ("scripts/install.sh recipe", "OUT: exists already", "jsonl:1", "jsonl:2", "jsonl:3"):
        assert words in done.stderr


def test_too_few_rows(tmp_path: Path) -> None:
    """Fewer rows than samples are an error before anything is loaded."""
    rows = write_rows(tmp_path / "rows.jsonl", 3)
    done = run(*QUANTIZE, tmp_path, tmp_path / "out", "--calibration", rows, "--python", sys.executable)
    assert done.returncode == 2
    assert "3 of 128" in done.stderr


def test_room_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too little disk and memory are told together, with exit code 3; layers that are kept already count."""
    spec = importlib.util.spec_from_file_location("compress", ROOT / "recipes" / "gemma4-e4b-opt" / "compress.py")
    assert spec is not None
    assert spec.loader is not None
    compress = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compress)
    base, out, cpu = tmp_path / "base", tmp_path / "out", SimpleNamespace(type="cpu")
    (tmp_path / ".out.work").mkdir()
    base.mkdir()
    text = {"hidden_size": 2560, "intermediate_size": 10240}
    (base / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": text}))
    with (base / "model.safetensors").open("wb") as file:
        file.truncate(16 * 10**9)  # a sparse file
    monkeypatch.setattr(compress, "available_memory", lambda: 20 * 10**9)
    monkeypatch.setattr(compress.shutil, "disk_usage", lambda _: SimpleNamespace(free=30 * 10**9))
    for kept, needs in ((0, "needs 32.0 GB of disk (got 30.0 GB free); "), (2 * 10**9, "")):
        with (tmp_path / ".out.work" / "prune-000.safetensors").open("wb") as file:
            file.truncate(kept)
        with pytest.raises(SystemExit, match="3"):
            compress.check_room(base, out, cpu)
        said = json.loads(capsys.readouterr().out.removeprefix(compress.MARK))
        # The weights, 3 GiB, and on a CPU five Hessians of the widest matrix's inputs.
        assert said["problem"] == f"{needs}needs 21.3 GB of memory (got 20.0 GB free)"
    monkeypatch.setattr(compress, "available_memory", lambda: 30 * 10**9)
    compress.check_room(base, out, cpu)


def test_problem_of_the_program(tmp_path: Path) -> None:
    """A problem that the program reports has exit code 3; any other end has 2 and its last lines."""
    rows = write_rows(tmp_path / "rows.jsonl", 3)
    script = tmp_path / "compress.py"
    words = (*QUANTIZE, tmp_path, tmp_path / "out", "--calibration", rows, "--samples", "3", "--recipe", tmp_path)
    script.write_text("""print('servekit-recipe {"problem": "needs 9 GB of disk", "remedy": "make room"}')\nexit(3)""")
    reported = run(*words, "--python", sys.executable)
    assert (reported.returncode, reported.stderr.strip()) == (3, "error: needs 9 GB of disk; make room")
    script.write_text("raise RuntimeError('the kernel is out of registers')")
    broken = run(*words, "--python", sys.executable)
    assert broken.returncode == 2
    assert "the kernel is out of registers" in broken.stderr


def test_card(tmp_path: Path) -> None:
    """The model card has the measured sizes, the licence and the table of results."""
    record = {
        "base": {"name": "google/gemma-4-E4B-it", "revision": "abc", "license": "apache-2.0", "sizes": {"a": 16e9}},
        "calibration": {"dataset": "d", "split": "train", "samples": 128},
        "bytes": {"model.safetensors": 10e9, "config.json": 9e9},
        "versions": {"torch": "2.11.0"},
        "steps": {"prune": {"0": {"matrices": {"mlp.up_proj": {"elements": 1000, "zeros": 100}}}}},
        "tokens": 9,
        "seconds": 1.5,
        "device": "L4",
        "peak": {"host_gb": 1.0, "gpu_gb": 2.0},
    }
    (tmp_path / "quantization.yaml").write_text(yaml.safe_dump(record))
    write_card(tmp_path, "| figures |")
    card = (tmp_path / "README.md").read_text()
    for words in ("10.000 GB, of 16.000 GB (-37.5%)", "license: apache-2.0", "10.00%", "| figures |", "gpu 2.0 GB"):
        assert words in card


@pytest.fixture(scope="module")
def made(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, pruned and quantized by the command, which was killed at the fourth layer and run again."""
    out = tmp_path_factory.mktemp("made") / "out"
    words = [*map(str, (*QUANTIZE, base, out, "--calibration", rows))]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as first:
        assert first.stderr is not None
        next(line for line in first.stderr if "quantized layer 3" in line)
        os.killpg(first.pid, signal.SIGKILL)
    second = run(*words)
    assert second.returncode == 0, second.stderr
    assert not list(out.parent.glob(".out.work"))
    return out


@pytest.mark.skipif(not RECIPE_PYTHON.exists(), reason="no .venv-recipe: scripts/install.sh recipe")
@pytest.mark.engine
@pytest.mark.timeout(3600)
class TestRecipe:
    """The real recipe on a tiny Gemma 4: about two minutes on two idle cores."""

    def test_same_bytes_without_interruption(self, made: Path, base: Path, rows: Path, tmp_path: Path) -> None:
        """The same seed gives the same weights, masks and configuration, with a resume as without."""
        whole = run(*QUANTIZE, base, tmp_path / "out", "--calibration", rows)
        assert whole.returncode == 0, whole.stderr
        for name in ("model.safetensors", "pruning-mask.zip", "config.json", "recipe.yaml"):
            first, second = ((folder / name).read_bytes() for folder in (made, tmp_path / "out"))
            assert first == second, name

    def test_verified(self, made: Path, base: Path, rows: Path) -> None:
        """Verification, with the outputs of the layers on texts, has nothing to say; each MLP matrix has 10.00 %."""
        words = ("verify", made, "--base", base, "--texts", rows, "--samples", "8", "--format", "json")
        done = run(*QUANTIZE[:3], *words)
        found = json.loads(done.stdout)
        assert (done.returncode, found["findings"]) == (0, [])
        mlp = [each for name, each in found["matrices"].items() if ".mlp." in name]
        assert {round(each["pruned"], 4) for each in mlp} == {0.1}
        assert {each["pruned_lost"] for each in mlp} == {0}

    def test_better_than_rounding_in_every_matrix(self, made: Path) -> None:
        """On the calibration data the error of every matrix's output is below that of rounding, and no zero is lost."""
        record = yaml.safe_load((made / "quantization.yaml").read_text())
        matrices = [each for layer in record["steps"]["quantize"].values() for each in layer["matrices"].values()]
        assert len(matrices) == 50
        assert [each for each in matrices if each["error"] >= each["error_of_rounding"] or each["zeros_lost"]] == []

    def test_sharing_equals_the_model(self, base: Path, rows: Path) -> None:
        """K and V of the shared layers, and the output, are bit for bit the model's own on 128 of 128 samples."""
        recipe = ROOT / "recipes" / "gemma4-e4b-opt"
        done = run(RECIPE_PYTHON, HERE / "sharing_program.py", recipe, base, rows, str(SAMPLES))
        assert done.stdout.split()[-3:] == [str(SAMPLES), "of", str(SAMPLES)], done.stderr[-2000:]

    def test_served(self, made: Path, base: Path, tmp_path: Path) -> None:
        """The real engine serves both on the CPU, answers text and picture, and their next words are not far apart.

        A random model has no redundancy: each layer's error of 0.5 % moves its sharp, random logits.
        """
        with make_endpoint(tmp_path, "--model", str(base), *BASELINE) as endpoint:
            endpoint.until_ready(1200)
            words = record(Served(endpoint.url, endpoint.key), read_prompts(None), positions=8, max_tokens=16)
        with make_endpoint(tmp_path, "--model", str(made)) as endpoint:
            endpoint.until_ready(1200)
            found = compare(Served(endpoint.url, endpoint.key), words)
        assert found.positions == 8 * len(words["cases"])
        assert found.divergence_nats < KL_BOUND
