"""`servekit eval` with the real lmms-eval on the real engine."""

import subprocess
import sys
from pathlib import Path

from servekit.measure.eval.mmmu_answers import Answer
from servekit.measure.record import Record
from tests.harness.endpoint import SERVEKIT, Endpoint, clean_environment
from tests.measure.eval.lmms import PYTHON, data_maker, needs_lmms_eval


@needs_lmms_eval
def test_mmmu_pro(endpoint: Endpoint, tmp_path: Path) -> None:
    """Every question is asked; those with more than three images are refused, and the record counts them as wrong.

    The tokens of the answers are those that the engine counted. Neither key nor question nor answer is in the output.
    """
    data = tmp_path / "MMMU_Pro"
    subprocess.run(data_maker(data), check=True, capture_output=True)
    out = tmp_path / "demo.json"
    words = ["eval", "mmmu-pro", "--data", str(data), "--streams", "14", "--out", str(out), "--idle-s", "0"]
    words += ["--python", str(PYTHON), "--observe", endpoint.observe_url, "--state-dir", str(endpoint.state_dir)]
    environ = clean_environment(HF_HOME=str(tmp_path / "hf"))
    argv = [sys.executable, *SERVEKIT, *words]
    ended = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Model Responding: 100%" in ended.stderr

    answers = Answer.read((tmp_path / "demo.answers.jsonl").read_text().splitlines(keepends=True))
    assert sorted((each.subset, each.id, each.images, each.outcome) for each in answers) == [
        *(("standard", f"test_Art_{n}", n, "answered" if n <= 3 else "refused") for n in range(1, 8)),
        *(("vision", f"test_Art_{n}", 1, "answered") for n in range(1, 8)),
    ]
    answered = [each for each in answers if each.outcome == "answered"]

    record = Record.model_validate_json(out.read_bytes())
    assert record.run.work is not None
    assert record.run.work.output_tokens == sum(each.output_tokens for each in answered)
    assert record.run.work.prompt_tokens == sum(each.prompt_tokens for each in answered)
    assert record.run.work.requests == len(answered)
    assert record.scores["MMMU-Pro standard: refused"] == 4
    assert record.scores["MMMU-Pro standard: failed"] == record.scores["MMMU-Pro vision: failed"] == 0
    assert 0 <= record.scores["MMMU-Pro standard (7 of 1,730)"] <= 100 * 3 / 7 + 0.01
    assert record.scores["MMMU-Pro vision: output tokens per question"] <= 256
    for secret in (endpoint.key, "SECRET", *(each.text[:30] for each in answered if each.text)):
        assert secret not in ended.stdout + ended.stderr
    assert endpoint.key not in record.model_dump_json()
