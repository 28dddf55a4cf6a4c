"""MMMU-Pro against a running endpoint, with lmms-eval as the measured command."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from servekit.errors import ConfigurationError, Finding
from servekit.measure.eval import lmms_program
from servekit.measure.eval.lmms_program import MARK, Plan
from servekit.measure.recording.session import Job

_VARIABLES: Final = {
    "CUDA_VISIBLE_DEVICES": "",  # torch would take memory of the endpoint's GPU
    "PYTHON_DOTENV_DISABLED": "1",  # lmms-eval reads the .env of every folder above its own
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1"}


def prepare(plan: Plan, python: Path, key: str, job: Job) -> tuple[Job, Mapping[str, int]]:
    """Load the questions, so that no download is measured; return `job` with its command, and the number of questions.

    python: of an environment with lmms-eval. Raises ConfigurationError for what keeps the evaluation from starting.
    """
    plan = plan._replace(out=str(answers_of(job.out).absolute()))
    mistakes = []
    if not os.access(python, os.X_OK):
        remedy = "run `scripts/install.sh eval` in a copy of servekit's repository, or give another Python"
        mistakes.append(Finding("no such program", "--python", got=str(python), remedy=remedy))
    if Path(plan.out).exists():
        mistakes.append(Finding("exists already", file=plan.out, remedy="choose another --out"))
    if mistakes:
        raise ConfigurationError(mistakes)
    variables = {**_VARIABLES, "OPENAI_API_KEY": key}
    found = _ask(_command(python, "prepare", plan), {**variables, **(_OFFLINE if plan.data else {})})
    if "problem" in found:
        raise ConfigurationError([Finding(found["problem"], found["at"], remedy=found["remedy"])])
    command = _command(python, "run", plan._replace(max_model_len=found["max_model_len"]))
    return replace(job, command=command, variables={**variables, **_OFFLINE}), found["questions"]


def answers_of(record: Path) -> Path:
    """Return the file with the answers, beside the record."""
    return record.with_name(f"{record.name.removesuffix('.json')}.answers.jsonl")


def _command(python: Path, name: str, plan: Plan) -> tuple[str, ...]:
    return (str(python), "-I", lmms_program.__file__, name, json.dumps(plan._asdict()))


def _ask(command: tuple[str, ...], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return what `prepare` reports; its progress, and what nobody foresaw, go to standard error."""
    environ = {**os.environ, **variables}
    ended = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, errors="replace", check=False)
    lines = [line.removeprefix(MARK) for line in ended.stdout.splitlines() if line.startswith(MARK)]
    if lines:
        return dict(json.loads(lines[-1]))
    remedy = "see above; if packages are missing, run `scripts/install.sh eval`"
    return {"problem": f"ended with exit code {ended.returncode}", "at": command[0], "remedy": remedy}
