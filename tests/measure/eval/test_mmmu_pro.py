"""`servekit eval`: what it gives to lmms-eval, what it records, and what it says before it starts."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.measure.eval.mmmu_answers import Answer, score
from servekit.measure.record import Record
from tests.conftest import KEY, write_key_file
from tests.measure.eval.lmms import OPTIONS
from tests.measure.site import TOKENS, Site, running_site

PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, sys, urllib.request
_, program, name, plan = sys.argv[1:]
here = pathlib.Path(__file__)
told = {{"name": name, "plan": json.loads(plan), "variables": dict(os.environ), "words": sys.argv}}
with here.with_name("calls.jsonl").open("a") as calls:
    print(json.dumps(told), file=calls)
if name == "prepare":
    print("a line of a library")
    print(here.with_name("prepared").read_text())
    sys.exit(0)
urllib.request.urlopen(here.with_name("work").read_text()).read()
pathlib.Path(told["plan"]["out"]).write_text(here.with_name("answers").read_text())
pathlib.Path(os.environ["MEASURE_SCORES_FILE"]).write_text(here.with_name("scores").read_text())
sys.exit(3)
"""
"""In the place of lmms-eval's Python: notes how it was called, and leaves what the test wrote beside it."""
ANSWERS = [
    Answer("standard", "direct", "test_Art_1", "Art", OPTIONS, "B", 1, "answered", text="(B)", output_tokens=7),
    Answer("standard", "direct", "test_Art_2", "Art", OPTIONS, "B", 4, "refused", why="400 too_many_images"),
]


@pytest.fixture
def site() -> Iterator[Site]:
    """An endpoint that wants a key and counts."""
    with running_site() as site:
        site.status["endpoint"] = f"{site.url}/v1"
        site.status["plan"] |= {"authentication": True, "model": "/models/m"}
        yield site


@pytest.fixture
def python(tmp_path: Path, site: Site) -> Path:
    """A program in the place of lmms-eval's Python, for seven questions."""
    path = tmp_path / "python"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    found = {"questions": {"standard": 7, "vision": 7}, "max_model_len": 2048}
    (tmp_path / "prepared").write_text(f"servekit-eval {json.dumps(found)}")
    (tmp_path / "work").write_text(f"{site.url}/work")
    (tmp_path / "answers").write_text("".join(each.line() for each in ANSWERS))
    (tmp_path / "scores").write_text(json.dumps(score(ANSWERS)))
    return path


def evaluate(tmp_path: Path, site: Site, python: Path, *words: str) -> Result:
    """Run `servekit eval mmmu-pro` without idle time; exceptions pass."""
    fixed = ["--observe", site.url, "--python", str(python), "--out", str(tmp_path / "out.json"), "--idle-s", "0"]
    keys = ["--api-keys-file", str(write_key_file(tmp_path, KEY))]
    return CliRunner().invoke(command, ["eval", "mmmu-pro", *fixed, *keys, *words], catch_exceptions=False)


def calls(python: Path) -> list[dict[str, Any]]:
    """Return every call of the program."""
    return [json.loads(line) for line in python.with_name("calls.jsonl").read_text().splitlines()]


def test_the_record_has_the_scores(tmp_path: Path, site: Site, python: Path) -> None:
    """The questions are loaded before the measurement; the scores are in the record, and the exit code is the run's."""
    words = ["--data", str(tmp_path), "--prompt", "cot", "--limit", "2", "--streams", "9", "--fact", "image=sha256:1"]
    ended = evaluate(tmp_path, site, python, *words)
    assert ended.exit_code == 3
    assert "eval: 2 standard, 2 vision questions" in ended.stderr
    assert "MMMU-Pro standard (2 of 1,730): 50.00 %\n" in ended.stdout
    assert "MMMU-Pro standard: refused: 1\n" in ended.stdout
    record = Record.model_validate_json((tmp_path / "out.json").read_bytes())
    assert record.scores == score(ANSWERS)
    assert record.run.work is not None
    assert record.run.work.output_tokens == TOKENS
    assert record.identity.facts == {"image": "sha256:1"}
    assert KEY not in record.model_dump_json()

    prepared, run = calls(python)
    assert [prepared["name"], run["name"]] == ["prepare", "run"]
    plan = {"url": f"{site.url}/v1", "model": "m", "subsets": ["standard", "vision"], "prompt": "cot", "limit": 2}
    plan |= {"data": str(tmp_path), "streams": 9, "out": str(tmp_path / "out.answers.jsonl")}
    assert prepared["plan"] == plan | {"max_model_len": 0}
    assert run["plan"] == plan | {"max_model_len": 2048}
    assert run["words"][1] == "-I"
    for call in (prepared, run):
        assert call["variables"]["OPENAI_API_KEY"] == KEY
        assert call["variables"]["CUDA_VISIBLE_DEVICES"] == "", "it must not take memory of the endpoint's GPU"
        assert call["variables"]["HF_HUB_OFFLINE"] == "1"
        assert KEY not in " ".join(call["words"])


def test_only_the_preparation_may_ask_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Site, python: Path
) -> None:
    """Without --data the questions come from the hub, before the measurement and not during it."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    evaluate(tmp_path, site, python, "--subset", "vision")
    assert [call["variables"].get("HF_HUB_OFFLINE") for call in calls(python)] == [None, "1"]
    assert [call["plan"]["subsets"] for call in calls(python)] == [["vision"], ["vision"]]


def test_the_report_has_the_rows(tmp_path: Path, site: Site, python: Path) -> None:
    """Accuracies are percentages, counts are not, the half that was not asked is not measured.

    `eval score` computes the same scores from the file of answers; it names a file without answers.
    """
    printed = evaluate(tmp_path, site, python).stdout
    words = ["report", str(tmp_path / "out.json"), "--format", "markdown"]
    shown = CliRunner().invoke(command, words, catch_exceptions=False).stdout
    assert "| MMMU-Pro standard (2 of 1,730), % | 50.00 |" in shown
    assert "| MMMU-Pro standard: refused | 1 |" in shown
    assert "| MMMU-Pro vision, % | not measured |" in shown
    assert "| MMMU-Pro standard, % |" not in shown
    words = ["eval", "score", str(tmp_path / "out.answers.jsonl")]
    assert CliRunner().invoke(command, words, catch_exceptions=False).stdout == printed
    with pytest.raises(ConfigurationError, match=r"out\.json: .*has no answers"):
        CliRunner().invoke(command, ["eval", "score", str(tmp_path / "out.json")], catch_exceptions=False)


def test_what_keeps_it_from_starting_is_said_first(tmp_path: Path, site: Site, python: Path) -> None:
    """A missing environment, an existing file, a problem with questions or endpoint, a crash: nothing is measured."""
    (tmp_path / "out.answers.jsonl").touch()
    with pytest.raises(ConfigurationError) as caught:
        evaluate(tmp_path, site, tmp_path / "nowhere")
    there, missing = sorted(map(str, caught.value.findings))
    assert "--python" in missing
    assert "scripts/install.sh eval" in missing
    assert "exists already" in there
    (tmp_path / "out.answers.jsonl").unlink()

    problem = {"problem": "has no column image", "at": "/data", "remedy": "give the data set"}
    (tmp_path / "prepared").write_text(f"servekit-eval {json.dumps(problem)}")
    with pytest.raises(ConfigurationError, match="/data: has no column image; give the data set"):
        evaluate(tmp_path, site, python)
    (tmp_path / "prepared").write_text("")
    with pytest.raises(ConfigurationError, match="ended with exit code 0"):
        evaluate(tmp_path, site, python)
    assert evaluate(tmp_path, site, python, "--fact", "image").exit_code == 2
    assert not (tmp_path / "out.json").exists()
    assert [call["name"] for call in calls(python)] == ["prepare", "prepare"]
    assert os.access(python, os.X_OK)
