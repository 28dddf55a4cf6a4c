"""Runs a program of the recipe in an environment of its own: servekit never imports torch or llm-compressor."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from servekit.errors import ConfigurationError, Finding, PreflightError

MARK: Final = "servekit-recipe "
"""Begins each line that is meant for servekit: the libraries print lines of their own."""
FOLDER: Final = Path("recipes/gemma4-e4b-opt")
ENVIRONMENT: Final = Path(".venv-recipe/bin/python")
INSTALL: Final = "run scripts/install.sh recipe in servekit's folder, or name a Python that has the packages: --python"
_LAST_LINES: Final = 15
Report = Mapping[str, Any]


def run_program(words: Sequence[str | Path], report: Callable[[Report], None], log: Path | None = None) -> None:
    """Run a program to its end; `report` gets each of its reports, `log` everything else.

    Raises PreflightError with the problem that the program reports, ConfigurationError if it ends in another way.
    """
    # A PYTHONPATH would put servekit's packages before those of the environment.
    environ = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    problem: Report = {}
    last: list[str] = []
    with (log or Path(os.devnull)).open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(word) for word in words],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        with process, process.stdout:
            for line in process.stdout:
                said = json.loads(line.removeprefix(MARK)) if line.startswith(MARK) else {}
                if "problem" in said:
                    problem = said
                elif said:
                    report(said)
                else:
                    last = [*last, line.rstrip()][-_LAST_LINES:]
                    file.write(line)
    if problem:
        raise PreflightError([Finding(problem["problem"], remedy=problem["remedy"])])
    if process.returncode:
        what = f"{Path(words[0]).name} ended with exit code {process.returncode}"
        remedy = f"all of its output is in {log}; the same command continues the job" if log else ""
        raise ConfigurationError([Finding("\n".join([what, *last]), remedy=remedy)])


def need_file(path: Path, what: str, remedy: str) -> list[Finding]:
    """Return a finding if a file does not exist."""
    return [] if path.is_file() else [Finding(what, file=str(path), remedy=remedy)]
