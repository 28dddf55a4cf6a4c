"""Hold `servekit check` to the engine's verdict on mutated checkpoints: `python -m benchmarks.verdicts`.

Each mutation changes the demo checkpoint (W4A16 or BF16) as people's files are wrong (`known.yaml`), or blindly. vLLM
0.20.2 for the CPU then refuses it, serves it, or serves it wrongly: with logits that a correct load would not give.
`check` must refuse what is not served, and only that. A whole start decides where the two disagree.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.verdicts.judges import LAST, REFUSED, SERVED, Bench, Engine, whole_start
from benchmarks.verdicts.mutations import draw, view

RECORD = Path(__file__).with_name("record.jsonl")
BASES = {"w4a16": 3, "bf16": 1}
"""How often each unchanged checkpoint is mutated."""


def main() -> None:
    """Judge, record, and exit with 1 if `check` was wrong."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # otherwise the engine would run on
    with tempfile.TemporaryDirectory(prefix="servekit-verdicts-") as folder:
        bench = Bench(Path(folder))
        records: list[dict[str, Any]] = []
        if options.replay:
            records += replay(bench, read(options.record))
            print("\n".join(told(record) for record in records if is_wrong(record)))
        else:
            with Engine(bench, options.log) as engine:
                for record in fresh(bench, engine, options.seed, options.mutations, arbiter=options.arbiter):
                    records.append(record)
                    if options.write:
                        write(options.record, records)
    print(summary(records))
    sys.exit(any(is_wrong(record) for record in records))


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verdicts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=200, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="draws the same ones again (default: the time)"
    )
    parser.add_argument("--record", type=Path, default=RECORD, help="a line for each mutation (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="replace the record by this run")
    parser.add_argument("--replay", action="store_true", help="hold check to the record; starts no engine")
    parser.add_argument("--no-arbiter", dest="arbiter", action="store_false", help="never start a whole engine")
    parser.add_argument("--log", type=Path, default=Path("/dev/null"), help="where the engine's output goes")
    return parser.parse_args()


def fresh(bench: Bench, engine: Engine, seed: int, mutations: int, *, arbiter: bool = True) -> Iterator[dict[str, Any]]:
    """Draw mutations and judge them."""
    views = {base: view(bench.folder / base) for base in BASES}
    for number in range(mutations):
        random = Random(f"{seed} {number}")
        base = random.choices(list(BASES), list(BASES.values()))[0]
        means, changes = draw(random, views[base])
        began_s = time.monotonic()
        record = judged(bench, engine, {"draw": f"{seed} {number}", "base": base, "means": means, "changes": changes})
        if is_wrong(record) and arbiter and record["engine"] in {SERVED, REFUSED} and record.get("stage") != LAST:
            record |= {"engine": whole_start(bench, base, record["check"]), "whole": True}
        print(f"{number + 1}/{mutations} {time.monotonic() - began_s:.0f} s {told(record)}", flush=True)
        yield record


def judged(bench: Bench, engine: Engine, record: dict[str, Any]) -> dict[str, Any]:
    """Return the mutation with the verdicts of the engine and of `check`."""
    base, means = record["base"], record["means"]
    bench.mutate(base, record["changes"])
    drawn = {key: record[key] for key in ("draw", "base", "means", "changes")}
    return drawn | engine.verdict(base, means) | {"check": bench.check(base)}


def replay(bench: Bench, records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return the records with today's findings of `check`."""
    for record in records:
        bench.mutate(record["base"], record["changes"])
        yield record | {"check": bench.check(record["base"])}


def is_wrong(record: dict[str, Any]) -> bool:
    """Whether `check` accepts what is not served, or refuses what is."""
    return (record["engine"] == SERVED) is bool(record["check"])


def told(record: dict[str, Any]) -> str:
    """Return a record as a line."""
    sign = "WRONG " if is_wrong(record) else ""
    words = " ".join(record[key] for key in ("engine", "stage", "words") if key in record)
    found = ", ".join(record["check"]) or "accepted"
    return f"{sign}{record['base']} {record['means']} {json.dumps(record['changes'])}: {words}; check: {found}"


def summary(records: list[dict[str, Any]]) -> str:
    """Return how many mutations the engine served and refused, and how many of them `check` judged wrongly."""
    counts = Counter((record["engine"], is_wrong(record)) for record in records)
    lines = [f"{sum(is_wrong(record) for record in records)} wrong verdicts in {len(records)} mutations"]
    lines += [
        f"  {engine}: {counts[engine, False] + counts[engine, True]}, check wrong on {counts[engine, True]}"
        for engine in sorted({key[0] for key in counts})
    ]
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, Any]]:
    """Read a record."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a record: a line for each mutation with the engine's verdict, not with that of `check`."""
    kept = [{key: value for key, value in record.items() if key != "check"} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
