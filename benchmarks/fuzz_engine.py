"""Twenty thousand requests drawn from the guard's table of fields, on the real engine.

usage: python -m benchmarks.fuzz_engine [--requests N] [--seed N] [--wide] [--json FILE]

Each request depends only on the seed and its number. Exits with 1 on a failure: an answer that is neither correct nor
a refusal with a message, the end of the engine, a slot or a byte that was not released, or the event loop
blocked for more than 250 ms of its own CPU time. `--wide` uses the demo with 262,144 words.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe_machine
from tests.engine.conftest import make_endpoint
from tests.engine.killers.barrage import bombard
from tests.engine.killers.catalogue import is_alive
from tests.engine.killers.conftest import start_wide, target_of
from tests.engine.killers.figures import gauge, held, longest_held_s
from tests.harness.endpoint import Endpoint

REQUESTS = 20_000
START_S = 300
"""A start on two busy cores; on an idle host it takes 25 to 50 seconds."""
WARM = 200
STEP = 1_000
"""Requests between two lines of progress."""
SETTLE_S = 60


def main() -> None:
    """Fuzz, print the result, exit with 1 on a failure."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # otherwise the endpoint would keep running
    with tempfile.TemporaryDirectory(prefix="servekit-fuzz-") as folder:
        cache = Path(folder)
        endpoint = start_wide(cache) if options.wide else make_endpoint(cache)
        try:
            endpoint.until_ready(START_S)
            result = measure(endpoint, cache, options)
        finally:
            endpoint.finish()
    result["machine"] = describe_machine()
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if result["wrong"] else 0)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz_engine", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--requests", type=int, default=REQUESTS, help="number of requests (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random sequence (default: %(default)s)")
    parser.add_argument("--wide", action="store_true", help="use the demo with 262,144 words")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    return parser.parse_args()


def measure(endpoint: Endpoint, cache: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Send the requests in steps; return the statuses and all failures."""
    target = target_of(endpoint, cache, wide=options.wide)
    processes = endpoint.roles()
    server = psutil.Process(processes["server"])
    wrong = bombard(target, options.seed + 1_000_000, range(WARM)).wrong
    held_before, resident_before = held(endpoint), server.memory_info().rss
    statuses: dict[str, int] = {}
    began = time.monotonic()
    for start in range(0, options.requests, STEP):
        seen = bombard(target, options.seed, range(start, min(start + STEP, options.requests)))
        wrong += seen.wrong
        for status, count in seen.statuses.items():
            statuses[str(status)] = statuses.get(str(status), 0) + count
        print(f"{start + STEP:,} requests, {time.monotonic() - began:.0f} s, {len(wrong)} wrong", flush=True)
        if not is_alive(target):
            wrong.append(f"the engine ended: {endpoint.lines[-1]}")
            return {"requests": start, "seed": options.seed, "statuses": statuses, "wrong": wrong}
    seconds = time.monotonic() - began
    until = time.monotonic() + SETTLE_S
    while gauge(endpoint, "servekit_guard_in_flight") and time.monotonic() < until:
        time.sleep(0.2)
    kept = {name: gauge(endpoint, f"servekit_guard_{name}") for name in ("in_flight", "buffered_bytes")}
    wrong += [f"not released: {name} {value}" for name, value in kept.items() if value]
    if over := held(endpoint) - held_before:
        wrong.append(f"the event loop was held for more than 250 ms, {over:.0f} times")
    if endpoint.roles().get("core") != processes["core"]:
        wrong.append("EngineCore is another one")
    return {
        "requests": sum(statuses.values()),
        "seed": options.seed,
        "model": "262,144 words" if options.wide else "demo",
        "seconds": round(seconds),
        "statuses": dict(sorted(statuses.items())),
        "longest_held_ms": round(1000 * longest_held_s(endpoint)),
        "resident_growth_mib": round((server.memory_info().rss - resident_before) / 1024**2),
        "wrong": wrong,
    }


if __name__ == "__main__":
    main()
