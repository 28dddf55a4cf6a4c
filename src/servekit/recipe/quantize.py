"""`servekit quantize`: checks what can be checked at once, then lets the recipe's script do the work."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servekit.errors import ConfigurationError, Finding
from servekit.recipe.card import write_card
from servekit.recipe.program import INSTALL, Report, need_file, run_program

_STEPS = {
    "download": "downloading {what}",
    "load": "loading the base",
    "sharing": "the layers share K and V as in the model itself; {samples} samples, {tokens} tokens",
    "prune": "pruned layer {layer} of {layers}, {left} left",
    "quantize": "quantized layer {layer} of {layers}, {left} left",
    "write": "writing the checkpoint",
}


@dataclass(frozen=True)
class Job:
    """What to make from what, and with which tools."""

    base: str
    out: Path
    calibration: str
    samples: int
    max_seq_len: int
    skip_pruning: bool
    device: str
    seed: int
    recipe: Path
    python: Path


def quantize(job: Job, report: Callable[[str], None]) -> None:
    """Make the checkpoint; `report` gets a line for each step.

    Raises ConfigurationError with all that is wrong, PreflightError if disk or memory will not be enough.
    """
    script = job.recipe / "compress.py"
    findings = [
        *need_file(job.python, "no environment for the recipe", INSTALL),
        *need_file(script, "no such recipe", "start servekit in its own folder, or name a recipe's folder: --recipe"),
        *_check_out(job.out),
        *_check_rows(job),
    ]
    if findings:
        raise ConfigurationError(findings)
    words: list[str | Path] = [job.python, script, job.base, job.out.absolute(), "--calibration", job.calibration]
    words += ["--samples", str(job.samples), "--max-seq-len", str(job.max_seq_len), "--device", job.device]
    words += ["--seed", str(job.seed), "--recipe", job.recipe / "recipe.yaml"]
    words += ["--skip-pruning"] if job.skip_pruning else []
    run_program(words, lambda said: report(_line(said)), job.out.with_name(f".{job.out.name}.log"))
    write_card(job.out)


def _line(said: Report) -> str:
    if "done" in said:
        return f"{said['done']} in {said['seconds']} s"
    seconds = said.get("left_s", 0)
    left = f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"  # noqa: PLR2004 - a minute
    return _STEPS[said["step"]].format(**said, left=left)


def _check_out(out: Path) -> Iterator[Finding]:
    if not out.parent.is_dir():
        yield Finding("the folder for it does not exist", "OUT", got=str(out.parent), remedy="create it")
    elif out.exists():
        yield Finding("exists already", "OUT", got=str(out), remedy="name a new folder")


def _check_rows(job: Job) -> list[Finding]:
    """Check every row of a JSONL file: all mistakes at once, ten at most."""
    path = Path(job.calibration)
    if not path.is_file():  # the id of a data set, or a folder with one
        return []
    wrong: list[Finding] = []
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            count += 1
            if (problem := _row_problem(line)) and len(wrong) < 10:  # noqa: PLR2004 - the rest is like them
                wrong.append(Finding(problem, file=str(path), line=number, remedy=_ROW))
    if not wrong and count < job.samples:
        remedy = "give more rows, or fewer --samples"
        wrong.append(Finding("fewer rows than samples", file=str(path), got=f"{count} of {job.samples}", remedy=remedy))
    return wrong


_ROW = 'write {"messages": [{"role": "user", "content": "..."}, ...]}, one object in a line'


def _row_problem(line: bytes) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        return f"is not JSON: {error}"
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return "has no list `messages`"
    whole = all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages)
    return "" if whole else "has a message without role and content"
