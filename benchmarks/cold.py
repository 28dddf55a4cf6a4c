"""Cold starts of `servekit check` with the shipped profile, in three degrees of cold.

`check` checks the profile, the checkpoint (the demo one, already built), the host and the memory;
`check --profile-only` checks only the file. The degrees:

warm files: a fresh process; the page cache has everything it reads. evicted files: before each run the benchmark asks
the kernel to drop the pages of Python's, servekit's and the checkpoint's files (posix_fadvise(2), POSIX_FADV_DONTNEED),
as after a boot; pages that other processes have mapped stay. no bytecode: as on the first run after an installation
without compilation: Python compiles every module in memory and writes nothing.
"""

import os
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.programs import ROOT, SERVEKIT, SPREAD_HEAD, Timed, clean_environment, spread, timed
from tests.harness.ports import free_port

NAME = "cold"
ROUNDS = 15
LIMIT_S = 0.6
DEGREES = ("warm files", "evicted files", "no bytecode")


def run(rounds: int | None) -> dict[str, Any]:
    """Return the wall-clock and CPU times in seconds for each command and degree of cold."""
    runs: dict[str, dict[str, list[Timed]]] = {
        command: {degree: [] for degree in DEGREES} for command in ("check", "check --profile-only")
    }
    with tempfile.TemporaryDirectory(prefix="servekit-bench-") as cache:
        flags = ["--config", "vllm_config.yaml", "--target", "cpu", "--cache-dir", cache, "--engine", sys.executable]
        flags += ["--port", str(free_port()), "--observe-port", str(free_port()), "--state-dir", f"{cache}/state"]
        for command in runs:
            timed([str(SERVEKIT), *command.split(), *flags], clean_environment())
        for _ in range(rounds or ROUNDS):
            for command, degrees in runs.items():
                for degree, done in degrees.items():
                    if degree == "evicted files":
                        evict(Path(cache))
                    done.append(timed([str(SERVEKIT), *command.split(), *flags], _environment(degree)))
                    assert not done[-1].code, done[-1].output
    return {
        "wall_s": {
            command: {name: [each.wall_s for each in done] for name, done in degrees.items()}
            for command, degrees in runs.items()
        },
        "cpu_s": {
            command: {name: [each.cpu_s for each in done] for name, done in degrees.items()}
            for command, degrees in runs.items()
        },
        "limit_s": LIMIT_S,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    rows = [f"{'':<38}{SPREAD_HEAD}   processor time (wanted: {result['limit_s']} s in all)"]
    for command, degrees in result["wall_s"].items():
        for name, times in degrees.items():
            cpu_s = statistics.median(result["cpu_s"][command][name])
            rows.append(f"{f'{command}, {name}':<38}{spread(times, 3)}   {cpu_s:.3f} s")
    return rows


def _environment(degree: str) -> dict[str, str]:
    if degree != "no bytecode":
        return clean_environment()
    return clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": os.devnull}


def evict(*others: Path) -> None:
    """Ask the kernel to drop the cached pages of all files of Python and servekit, and of those below `others`."""
    os.sync()  # the kernel does not drop dirty pages
    for path in _files(others):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _files(others: Iterable[Path]) -> Iterator[Path]:
    places = sysconfig.get_paths()
    folders = {Path(places[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    yield Path(sys.executable).resolve()
    yield SERVEKIT
    for folder in {*folders, ROOT / "src", *others}:
        for parent, _, names in os.walk(folder):
            yield from (Path(parent, name) for name in names)
