"""A million inputs to the guard alone, guided by the coverage of its code: `python -m benchmarks.fuzz_guard`.

usage: python -m benchmarks.fuzz_guard [--inputs N] [--seed N] [--json FILE]

Needs no engine. The fuzzer (atheris, libFuzzer for Python) is installed into a separate environment in the user's cache
folder, from a lock with hashes. `tests/guard/fuzzed_gate.py` has the conditions that must hold. Exits with 1 when one
does not; the input is then kept, and its path printed.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import types
import venv
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements" / "fuzz.txt"
INPUTS = 1_000_000
BLIND = 0.1
"""Share of the inputs that libFuzzer changes itself, without knowledge of JSON."""
GUARD = "servekit.serve.guard.inside.servekit_guard"
MAX_LEN = 200_000
UNCAUGHT = " === Uncaught Python exception: ==="
MOST_SHOWN = 6_000
"""Characters of the fuzzer's output that are shown after a failure."""


def main() -> None:
    """Fuzz, print the result, exit with 1 when a condition does not hold."""
    options = parse()
    if options.inside:
        fuzz(options)
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="servekit-fuzz-") as folder:
        reported = Path(folder) / "report.json"
        own = [str(environment() / "bin" / "python"), "-m", "benchmarks.fuzz_guard", "--inside", folder]
        command = [*own, "--inputs", str(options.inputs), "--seed", str(options.seed)]
        path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True, check=False
        )
        result = json.loads(reported.read_text(encoding="utf-8")) if reported.exists() else {}
    result |= {"seconds": round(time.monotonic() - began), "seed": options.seed, "machine": describe_machine()}
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)
    result["edges"], result["features"], result["corpus"] = map(int, covered[-1]) if covered else (0, 0, 0)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if done.returncode or result.get("inputs", 0) < options.inputs:
        sys.exit(done.stderr[max(done.stderr.find(UNCAUGHT), len(done.stderr) - MOST_SHOWN) :])


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz_guard", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--inputs", type=int, default=INPUTS, help="number of inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the fuzzer (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def environment() -> Path:
    """Return the folder of an environment with the packages of the lock; create it when needed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "servekit-fuzz"
    stamp = cache / "lock.txt"
    if not stamp.exists() or stamp.read_text() != LOCK.read_text():
        venv.create(cache, with_pip=True, clear=True)
        pip = [str(cache / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
        stamp.write_text(LOCK.read_text())
    return cache


def fuzz(options: argparse.Namespace) -> None:
    """Fuzz in this process, whose environment has the fuzzer; never returns."""
    import atheris  # type: ignore[import-untyped] # noqa: PLC0415 - installed in the separate environment only

    for name in ("servekit", "servekit.serve", "servekit.serve.guard"):
        package = types.ModuleType(name)  # without its __init__, which imports packages that this environment lacks
        package.__path__ = [str(ROOT / "src" / name.replace(".", "/"))]
        sys.modules[name] = package
    with atheris.instrument_imports(include=[GUARD]):
        from tests.guard import fuzzed_gate  # noqa: PLC0415 - instrumented while it is imported

    corpus = options.inside / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(fuzzed_gate.SEEDS):
        (corpus / str(number)).write_bytes(seed)
    fuzzed = fuzzed_gate.FuzzedGate(options.inside)
    statuses: dict[int, int] = {}

    def one(data: bytes) -> None:
        status = fuzzed.try_input(data)
        statuses[status] = statuses.get(status, 0) + 1
        if sum(statuses.values()) % 10_000 == 0:
            report(options.inside / "report.json", statuses, fuzzed.slowest_s)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        chaos = random.Random(seed)
        if chaos.random() < BLIND:
            return bytes(atheris.Mutate(data, max_size))
        return fuzzed_gate.mutate(data, chaos)[:max_size]

    kept = Path(tempfile.gettempdir())
    argv = [sys.argv[0], f"-runs={options.inputs}", f"-seed={options.seed}", f"-max_len={MAX_LEN}", "-timeout=30"]
    atheris.Setup([*argv, f"-artifact_prefix={kept}/servekit-fuzz-", str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def report(path: Path, statuses: dict[int, int], slowest_s: float) -> None:
    """Write the result so far: the fuzzer ends the process itself."""
    found: dict[str, Any] = {"inputs": sum(statuses.values()), "statuses": dict(sorted(statuses.items()))}
    found["slowest_cpu_ms"] = round(1000 * slowest_s, 1)
    path.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
