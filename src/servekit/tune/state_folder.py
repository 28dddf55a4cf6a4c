"""What a search has done so far, in a folder: a search that was interrupted, however, goes on from there.

Each start has a folder of its own with its record, its log and the measurements. It gets its name in one step once
the start is over; until then its name ends in `.part`, and the next search deletes it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from servekit.errors import ConfigurationError, Finding, PreflightError
from servekit.file_trouble import make_folder

_PLAN: Final = "plan.json"
_RECORD: Final = "run.json"
_PART: Final = ".part"
_SHOWN: Final = 200


class Trial(BaseModel):
    """One start of a candidate and what its loads came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidate: str
    stage: int
    round: int
    began: str
    """ISO 8601, UTC."""
    start_s: float
    """From the start of `servekit serve` until it was ready, or had failed."""
    total_s: float
    failure: str = ""
    """Why there are no figures; empty if there are."""
    figures: dict[str, dict[str, float]] = {}
    """By load and by goal."""
    disturbances: list[str] = []
    rates: dict[str, float] = {}
    """Requests a second of each load, if this start was the one that found them."""


class StateFolder:
    """The folder of one search."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.candidates, self.serve_state = folder / "candidates", folder / "state"
        self._runs = folder / "runs"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder until this process ends, however it ends. Raises PreflightError where another has it."""
        for each in (self.folder, self.candidates, self._runs):
            make_folder(each)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                remedy = "wait until it is done, or choose another --dir"
                raise PreflightError(
                    [Finding("another servekit tune uses it", str(self.folder), remedy=remedy)]
                ) from None
            for part in self._runs.glob(f"*{_PART}"):
                shutil.rmtree(part)
            yield

    def recall(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the folder's search was begun with besides `question`; empty if it has not begun.

        Raises ConfigurationError where its question was another one: figures of both cannot be compared.
        """
        path = self.folder / _PLAN
        if not path.exists():
            return {}
        try:
            begun: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            before = begun.pop("question")
        except (ValueError, KeyError) as error:
            remedy = "choose another --dir"
            raise ConfigurationError(
                [Finding("is not a plan of servekit tune", file=str(path), remedy=remedy)]
            ) from error
        now = json.loads(json.dumps(question))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            remedy = "go on with what it was begun with, or choose another --dir"
            raise ConfigurationError(
                Finding(
                    f"this search was begun with other {key}: {_shown(before.get(key))}",
                    file=str(path),
                    got=_shown(now.get(key)),
                    remedy=remedy,
                )
                for key in changed
            )
        return begun

    def remember(self, question: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Write what the search begins with."""
        _replace(self.folder / _PLAN, json.dumps({"question": question, **answer}, indent=2))

    def trials(self) -> list[Trial]:
        """Return the starts that are over, in the order in which they were made."""
        found = []
        for path in self._runs.glob(f"*/{_RECORD}"):
            try:
                found.append(Trial.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                remedy = f"delete the folder {path.parent}, so that this start is made again"
                raise ConfigurationError(
                    [Finding("is not the record of a start", file=str(path), remedy=remedy)]
                ) from error
        return sorted(found, key=lambda trial: (trial.stage, trial.round, trial.began))

    def part(self, stage: int, number: int, candidate: str) -> Path:
        """Return a new folder for a start that is about to be made."""
        folder = self._runs / f"{stage}-{number}-{candidate}{_PART}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def keep(self, part: Path, trial: Trial) -> None:
        """Record a start that is over: all of it, or nothing."""
        _replace(part / _RECORD, trial.model_dump_json(indent=2))
        part.rename(part.with_suffix(""))
        _sync(self._runs)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder in one step."""
        _replace(self.folder / name, text)
        return self.folder / name


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a change of names in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
