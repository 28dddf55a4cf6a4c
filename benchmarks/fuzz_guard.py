"""A million inputs to the guard alone, guided by the coverage of its code: `python -m benchmarks.fuzz_guard`.

usage: python -m benchmarks.fuzz_guard [--inputs N] [--seed N] [--json FILE]

Needs no engine. The fuzzer (atheris, libFuzzer for Python) gets an environment of its own in the user's cache folder,
from a lock with hashes. What must hold is in `tests/guard/fuzzed_gate.py`. Ends with 1 where it did not; the input is
then kept, and its path printed.
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
"""Share of the inputs that libFuzzer changes itself, without knowing JSON."""
GUARD = "servekit.serve.guard.inside.servekit_guard"
MAX_LEN = 200_000
UNCAUGHT = " === Uncaught Python exception: ==="
MOST_SHOWN = 6_000
"""Characters of the fuzzer's output, where something did not hold."""


def main() -> None:
    """Fuzz, print what came of it, end with 1 where something did not hold."""
    options = parse()
    if options.inside:
        fuzz(options)
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="servekit-fuzz-") as folder:
        told = Path(folder) / "told.json"
        own = [str(environment() / "bin" / "python"), "-m", "benchmarks.fuzz_guard", "--inside", folder]
        command = [*own, "--inputs", str(options.inputs), "--seed", str(options.seed)]
        path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True, check=False
        )
        result = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
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
    parser.add_argument("--inputs", type=int, default=INPUTS, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def environment() -> Path:
    """Return the folder of an environment that has what the lock names, after making it if need be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "servekit-fuzz"
    stamp = cache / "lock.txt"
    if not stamp.exists() or stamp.read_text() != LOCK.read_text():
        venv.create(cache, with_pip=True, clear=True)
        pip = [str(cache / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
        stamp.write_text(LOCK.read_text())
    return cache


def fuzz(options: argparse.Namespace) -> None:
    """Fuzz in this process, which has the fuzzer; never returns."""
    import atheris  # type: ignore[import-untyped] # noqa: PLC0415 - in the environment of its own alone

    for name in ("servekit", "servekit.serve", "servekit.serve.guard"):
        package = types.ModuleType(name)  # without its __init__, whose packages this environment does not have
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
            tell(options.inside / "told.json", statuses, fuzzed.slowest_s)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        chaos = random.Random(seed)
        if chaos.random() < BLIND:
            return bytes(atheris.Mutate(data, max_size))
        return fuzzed_gate.mutate(data, chaos)[:max_size]

    kept = Path(tempfile.gettempdir())
    argv = [sys.argv[0], f"-runs={options.inputs}", f"-seed={options.seed}", f"-max_len={MAX_LEN}", "-timeout=30"]
    atheris.Setup([*argv, f"-artifact_prefix={kept}/servekit-fuzz-", str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def tell(path: Path, statuses: dict[int, int], slowest_s: float) -> None:
    """Write down what has been seen so far: the fuzzer ends the process itself."""
    told: dict[str, Any] = {"inputs": sum(statuses.values()), "statuses": dict(sorted(statuses.items()))}
    told["slowest_cpu_ms"] = round(1000 * slowest_s, 1)
    path.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
