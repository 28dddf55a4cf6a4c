"""Records as `servekit report` reads them: grouped by name, held to plain rules, and checked against their traces."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from servekit.errors import ConfigurationError, Finding
from servekit.measure.figures.compute import compute_record
from servekit.measure.record import Record
from servekit.measure.trace import SUFFIX, read_trace

_LONG_ENOUGH_S: Final = 600
_IDLE_S: Final = 60
_MISSING: Final = "nothing"


@dataclass(frozen=True)
class Run:
    """A record and its file."""

    path: Path
    record: Record

    @property
    def broken_rules(self) -> tuple[str, ...]:
        """The rules of MLPerf that this run breaks, and why its energy is not certain; in words."""
        record, energy = self.record, self.record.run.energy
        idle_s = record.idle.duration_s if record.idle else 0.0
        slowed = {each.what for each in record.disturbances if each.kind == "slowdown"}
        rules = {
            f"shorter than {_LONG_ENOUGH_S} s: {record.run.duration_s:.0f} s": record.run.duration_s < _LONG_ENOUGH_S,
            f"idle power read for {idle_s:.0f} s instead of {_IDLE_S} s": idle_s < _IDLE_S,
            f"throttled: {'; '.join(sorted(slowed))}": bool(slowed),
            f"no energy: {energy.why}": energy.joules is None,
            f"the energy is not certain to 0.5 %: {energy.why}": bool(energy.joules) and not energy.within_half_percent,
            f"no work: {record.engine.why}": record.run.work is None,
        }
        return tuple(rule for rule, broken in rules.items() if broken)

    @property
    def disturbances(self) -> tuple[str, ...]:
        """What else disturbed this run, in words; the same kind again is counted."""
        found: dict[str, list[str]] = {}
        for each in self.record.disturbances:
            if each.kind != "slowdown":
                found.setdefault(each.kind, []).append(each.what)
        return tuple(
            f"{kind}: {what[0]}{f' (and {len(what) - 1} more)' if len(what) > 1 else ''}"
            for kind, what in found.items()
        )


@dataclass(frozen=True)
class Group:
    """The runs of one name: repetitions of one configuration."""

    name: str
    runs: tuple[Run, ...]

    @property
    def differences(self) -> tuple[str, ...]:
        """In what the runs differ although they have one name."""
        facts = {
            "engine arguments": [_without(run.record.identity.arguments[1:], "--host", "--port") for run in self.runs],
            "checkpoint": [_checkpoint(run.record) for run in self.runs],
            "GPU": [sorted(gpu.name or "" for gpu in run.record.identity.gpus) for run in self.runs],
            "vLLM": [run.record.identity.vllm for run in self.runs],
            "command": [_without(run.record.command, "--seed", "--num-prompts") for run in self.runs],
        }
        return tuple(name for name, values in facts.items() if any(value != values[0] for value in values))


def load_run(path: Path) -> Run:
    """Read a record, or compute it from a raw trace, as a killed `measure` leaves it.

    Raises ConfigurationError where it is neither, OSError where it cannot be read.
    """
    if path.name.endswith(SUFFIX):
        trace = read_trace(path)
        if "run" not in trace.phases:
            raise ConfigurationError([Finding("ends before the command began", file=str(path), remedy="measure again")])
        return Run(path, compute_record(trace))
    try:
        return Run(path, Record.model_validate_json(path.read_bytes()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = f"is not a record of servekit measure: {first['msg'][:1].lower()}{first['msg'][1:]}"
        remedy = "give the .json file that `servekit measure` wrote"
        raise ConfigurationError([Finding(message, file=str(path), key=key, remedy=remedy)]) from error


def group_runs(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Return the runs by name, in order of appearance."""
    names = dict.fromkeys(run.record.name for run in runs)
    return tuple(Group(name, tuple(run for run in runs if run.record.name == name)) for name in names)


def verify_run(run: Run) -> tuple[int, list[Finding]]:
    """Compute a record again from the trace beside it; return the number of fields, and those that differ.

    Raises ConfigurationError or OSError where the trace cannot be read.
    """
    again = compute_record(read_trace(run.path.with_name(run.record.trace.file)))
    told, computed = (dict(_fields(json.loads(record.model_dump_json()))) for record in (run.record, again))
    keys = sorted(told.keys() | computed.keys())
    return len(keys), [
        Finding(
            f"the trace gives {computed.get(key, _MISSING)}",
            file=str(run.path),
            key=key,
            got=str(told.get(key, _MISSING)),
            remedy="the record or its trace was changed, or another version of servekit computed it",
        )
        for key in keys
        if told.get(key, _MISSING) != computed.get(key, _MISSING)
    ]


def _fields(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a record by its dotted key; an empty list or object is a value."""
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _fields(each, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for number, each in enumerate(value):
            yield from _fields(each, f"{key}.{number}")
    else:
        yield key, value


def _without(words: Sequence[str], *options: str) -> list[str]:
    """Return a command line without the values of options that may differ from one repetition to the next."""
    return [word for before, word in itertools.pairwise(["", *words]) if before not in options]


def _checkpoint(record: Record) -> Any:
    checkpoint = record.identity.checkpoint
    return checkpoint and ([(each.name, each.sha256) for each in checkpoint.files] or checkpoint.model)
