"""Copies of records for others to check: the same figures, without what names the machine."""

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from servekit.errors import ConfigurationError, Finding
from servekit.measure.figures.compute import compute_record
from servekit.measure.report.runs import Run
from servekit.measure.trace import SUFFIX, read_trace

_LEVEL: Final = 9
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost"})


def publish(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write a copy of each record and its trace; return the records' paths.

    The record is computed again from the copied trace. Raises ConfigurationError where a file exists already or a
    trace was cut off, OSError where a trace cannot be read.
    """
    names = [run.path.name.removesuffix(SUFFIX).removesuffix(".json") for run in runs]
    places = [(folder / f"{name}.json", folder / f"{name}{SUFFIX}") for name in names]
    there = [path for number, pair in enumerate(places) for path in pair if path.exists() or pair in places[:number]]
    findings = [Finding("exists already", file=str(path), remedy="choose another folder") for path in there]
    findings += [
        Finding("has a trace that was cut off", file=str(run.path), remedy="measure again")
        for run in runs
        if not run.record.trace.complete
    ]
    if findings:
        raise ConfigurationError(findings)
    folder.mkdir(parents=True, exist_ok=True)
    for run, (path, trace) in zip(runs, places, strict=True):
        lines = (
            gzip.decompress(run.path.with_name(run.record.trace.file).read_bytes()).decode().rstrip("\n").split("\n")
        )
        trace.write_bytes(gzip.compress(_nameless(lines).encode(), _LEVEL, mtime=0))
        path.write_text(compute_record(read_trace(trace)).model_dump_json(indent=2) + "\n", encoding="utf-8")
    return [path for path, _ in places]


def _nameless(lines: Sequence[str]) -> str:
    """Return a trace with GPUs by number, files without their folders, and neither kernel nor address of the host."""
    events: dict[str, dict[str, Any]] = {}
    for line in lines[:2]:
        event = json.loads(line)
        events[event["kind"]] = event
    identity = events["identity"]["identity"]
    identity["host"]["system"] = identity["host"]["system"].partition(" ")[0]
    head = "".join(f"{json.dumps(event, ensure_ascii=False)}\n" for event in events.values())
    for name in _addresses([identity.get("endpoint") or "", *events["begin"]["command"]]):
        head = head.replace(f"//{name}", "//endpoint")
    for place in _folders(identity, events["begin"]["command"]):
        head = head.replace(f"{place}/", "")
    text = head + "".join(f"{line}\n" for line in lines[2:])
    for number, gpu in enumerate(identity.get("gpus", ())):
        text = text.replace(gpu["uuid"], f"GPU-{number}")
    return text


def _folders(identity: Mapping[str, Any], command: Sequence[str]) -> list[str]:
    """Return the folders of the files that the record names, the longest first."""
    model = (identity.get("checkpoint") or {}).get("model")
    files = [identity.get("profile"), model, *identity.get("arguments", ())[:1], *command]
    paths = [PurePosixPath(file) for file in files if file and file.startswith("/")]
    folders = {str(path.parent) for path in paths if path.parts[1:2] != ("v1",)} - {"/"}
    return sorted(folders, key=len, reverse=True)


def _addresses(words: Sequence[str]) -> set[str]:
    return {host for word in words for host in re.findall(r"//([\w.-]+)", word)} - _LOOPBACK
