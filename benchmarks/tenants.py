"""Compare the books of twelve keys with the engine's own counters: mixed requests, kills -9 and a drain.

usage: python -m benchmarks.tenants [--requests N] [--only deaths] [--json FILE]

The real engine on the CPU, the demo checkpoint, loopback only. N requests in three parts: the first ends in quiet, in
the second servekit is killed, the third ends with a drain. Then EngineCore alone, vLLM's server alone and servekit are
killed under streams. Exits with 1 if the tokens of all names are not the engine's own counters, if a request is
missing, if servekit says nothing about books that a death left incomplete, or if a word of a prompt or a key is in any
file of the run.
"""

import argparse
import http.client
import json
import signal
import sys
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.deaths import PARTS, judge, kill, total
from benchmarks.endpoint import MODEL, served_by_servekit
from benchmarks.machine import describe_machine
from benchmarks.programs import working_folder
from servekit.serve.books.database import database_path, read_usage
from tests.harness.endpoint import Endpoint
from tests.harness.ports import free_port
from tests.harness.tenants import MARK, send_mixed

KEYS = {f"sk-team-{number:02}-0123456789abcdef": f"team-{number:02}" for number in range(12)}
"""Key to name."""
OWN = "(servekit)"
LOST = (OSError, http.client.HTTPException)
"""After one of these a client cannot know how far its request came."""
_SETTLE_S = 120
Outcomes = Counter[str]


def main() -> None:
    """Send, compare, print; exit with 1 on a difference."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenants", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="in all (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    parser.add_argument("--only", choices=["requests", "deaths"], help="one half of it")
    options = parser.parse_args()
    began_s = time.monotonic()
    with working_folder() as folder:
        key_file = folder / "keys"
        key_file.touch(0o600)
        key_file.write_text("".join(f"{key}  # {name}\n" for key, name in KEYS.items()))
        settings = {"SERVEKIT_API_KEYS_FILE": str(key_file), "SERVEKIT_REQUEST_LOG": "50"}
        result: dict[str, Any] = {"wrong": []}
        if options.only != "deaths":
            result |= measure(folder, settings, options.requests // 3)
        if options.only != "requests":
            result["killed"] = {part: kill(folder, free_port(), settings, KEYS, part) for part in PARTS}
            result["wrong"] += [each for part, figures in result["killed"].items() for each in judge(part, figures)]
        result["files with content"] = _files_with_content(folder, key_file)
    result |= {"seconds": round(time.monotonic() - began_s), "machine": describe_machine()}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if result["wrong"] or result["files with content"] else 0)


def measure(folder: Path, settings: Mapping[str, str], part: int) -> dict[str, Any]:
    """Send the three parts and return what was counted, and what is wrong with it."""
    wrong: list[str] = []
    seen: Outcomes = Counter()
    result: dict[str, Any] = {"wrong": wrong}
    port = free_port()
    with served_by_servekit(folder, port, **settings) as endpoint:
        seen += _sum(send_mixed(endpoint.port, list(KEYS), part, model=MODEL, seed=1, lost=LOST))
        result["quiet"] = _compare_quiet(endpoint, wrong)
        print(json.dumps(result["quiet"]), dict(seen), file=sys.stderr, flush=True)
        seen += _send_until(endpoint, part, 2, signal.SIGKILL)
    with served_by_servekit(folder, port, **settings) as endpoint:
        seen += _sum(send_mixed(endpoint.port, list(KEYS), part, model=MODEL, seed=3, lost=LOST))
        result["after a restart"] = _compare_quiet(endpoint, wrong)
        print(json.dumps(result["after a restart"]), dict(seen), file=sys.stderr, flush=True)
        seen += _send_until(endpoint, part // 10, 4, signal.SIGTERM)
    books = read_usage(database_path(folder))
    counted = {field: sum(int(row[field]) for name, row in books.items() if name != OWN) for field in books[OWN]}
    result |= {"clients saw": dict(seen), "the books have": counted}
    # A request that ended in the killed server's last moment has failed there.
    wrong.extend(
        f"{outcome}: the clients saw {seen[outcome]}, the books have {counted[outcome]}"
        for outcome in ("ok", "cancelled", "refused")
        if not seen[outcome] - counted["failed"] <= counted[outcome] <= seen[outcome] + seen["unknown"]
    )
    return result


def _send_until(endpoint: Endpoint, count: int, seed: int, number: signal.Signals) -> Outcomes:
    """Send requests, and in their midst a signal to servekit; return what the clients saw."""
    outcomes: Outcomes = Counter()

    def send() -> None:
        outcomes.update(_sum(send_mixed(endpoint.port, list(KEYS), count, model=MODEL, seed=seed, lost=LOST)))

    sender = threading.Thread(target=send)
    before = _requests(endpoint)
    sender.start()
    while sender.is_alive() and _requests(endpoint) < before + count * 9 // 10:
        time.sleep(0.1)
    endpoint.stop(number, within_s=200)
    sender.join()
    return outcomes


def _compare_quiet(endpoint: Endpoint, wrong: list[str]) -> dict[str, Any]:
    """Wait until nothing is in flight, then compare the sums over the names with the engine's own counters."""
    end_s = time.monotonic() + _SETTLE_S
    while True:
        page = endpoint.observe("/metrics")[1]
        sums = {
            kind: (total(page, f"servekit_key_{kind}_tokens_total"), total(page, f"vllm:{engine}_tokens_total"))
            for kind, engine in (("prompt", "prompt"), ("output", "generation"))
        }
        quiet = total(page, "servekit_key_in_flight") == 0
        if (quiet and all(ours == theirs for ours, theirs in sums.values())) or time.monotonic() > end_s:
            break
        time.sleep(0.5)
    wrong.extend(
        f"{kind} tokens: by name {ours}, the engine {theirs}" for kind, (ours, theirs) in sums.items() if ours != theirs
    )
    return {f"{kind} tokens, by name and by the engine": both for kind, both in sums.items()}


def _requests(endpoint: Endpoint) -> int:
    try:
        return total(endpoint.observe("/metrics")[1], "servekit_key_requests_total")
    except urllib.error.URLError:
        return 0


def _sum(outcomes: Mapping[str, Outcomes]) -> Outcomes:
    return sum(outcomes.values(), Counter())


def _files_with_content(folder: Path, *allowed: Path) -> Sequence[str]:
    """Return the files that servekit wrote and that contain a word of the prompts, or a key."""
    words = [word.encode() for word in (MARK, *KEYS)]
    files = (path for path in folder.rglob("*") if path.is_file() and path not in allowed)
    return [str(path) for path in files if any(word in path.read_bytes() for word in words)]


if __name__ == "__main__":
    main()
