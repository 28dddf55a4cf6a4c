"""SIGKILL for servekit at random moments of its start: what survives it. `python -m benchmarks.kills [NUMBER]`.

servekit starts a stand-in for vLLM, so that a start takes a second; all processes of a run have a mark in their
environment. Most kills fall into the first two seconds, in which servekit, its keeper and the engine start one after
the other.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from servekit.demo.build import ensure_demo_model
from tests.serve.kills import survivors


def main() -> None:
    """Kill NUMBER starts and print every one that left a process behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", nargs="?", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    draw = random.Random(wanted.seed)
    failures = engines = 0
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        ensure_demo_model(cache)
        for number in range(1, wanted.number + 1):
            moment = draw.uniform(0, 2) if number % 5 else draw.uniform(2, 5)
            met, left = survivors(moment, folder, cache)
            engines += met
            if left:
                failures += 1
                print(f"killed after {moment:.3f} s: {', '.join(left)} survive")
            if number % 25 == 0:
                print(
                    f"{number} of {wanted.number} kills, {engines} met an engine, {failures} left something", flush=True
                )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
