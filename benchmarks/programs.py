"""The two programs under comparison: servekit, from this environment, and the engine's `vllm`."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from servekit.demo.build import build_demo_model
from servekit.measure.statistics import extremes

ROOT = Path(__file__).parent.parent
SERVEKIT = Path(sys.executable).with_name("servekit")
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def engine_program() -> str:
    """Return the engine's program: SERVEKIT_ENGINE, or the one that `make install` puts into this checkout."""
    program = os.environ.get("SERVEKIT_ENGINE") or str(ROOT / ".venv-engine" / "bin" / "vllm")
    if not Path(program).exists():
        raise SystemExit(f"{program}: no such program; `make install` puts the CPU engine there")
    return program


def clean_environment() -> dict[str, str]:
    """Return this environment without any settings that could make two runs differ."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SERVEKIT_", "VLLM_"))} | QUIET


@contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a temporary folder with a demo checkpoint in `model`."""
    with tempfile.TemporaryDirectory(prefix="servekit-bench-") as name:
        build_demo_model(Path(name) / "model")
        yield Path(name)


@dataclass(frozen=True)
class Timed:
    """One finished run of a program."""

    wall_s: float
    cpu_s: float
    """Processor time of the program and its children: what other work on the machine changes least."""
    code: int
    output: str


def timed(argv: Sequence[str], environment: Mapping[str, str]) -> Timed:
    """Run a program to its end in the checkout's top folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(round(wall_s, 3), round(cpu_s, 3), done.returncode, done.stdout)


def spread(values: Sequence[float], digits: int = 2, unit: str = " s") -> str:
    """Return median, minimum and maximum of some values as three columns."""
    figures = extremes(values)
    return "".join(f"{value:>9.{digits}f}{unit}" for value in (figures.median, figures.low, figures.high))


SPREAD_HEAD = f"{'median':>11}{'best':>11}{'worst':>11}"
