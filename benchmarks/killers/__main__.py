"""Show that each rule is needed: `python -m benchmarks.killers [NAME...]`.

For each rule, this starts the real engine without that rule and sends the requests that the rule stops, beside a greedy
stream. The record has a line of JSON for each rule; rules that are already in it are skipped unless named.
`--table` writes the table of docs/results-faults.md from the record.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.killers.harm import NO_HARM, Seen, harm, verdict
from benchmarks.killers.rules import RULES, Rule
from benchmarks.killers.table import write_table
from tests.conftest import ROOT
from tests.engine.conftest import make_endpoint
from tests.engine.killers.catalogue import is_alive
from tests.engine.killers.conftest import start_wide, target_of
from tests.harness.endpoint import Endpoint

INSIDE = ROOT / "benchmarks" / "inside"
RECORD = ROOT / "benchmarks" / "killers" / "record.jsonl"
START_S = 300
"""A start on two busy cores; on an idle host it takes 25 to 50 seconds."""
END_S = 60
"""How long an engine may take to end after a harmful request; servekit ends a hanging one after half a minute."""


def main() -> None:
    """Run the chosen rules; exit with 1 when removing a rule did no harm."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # otherwise the endpoint would keep running
    records = read(options.record)
    if options.table:
        write_table(list(records.values()))
        return
    chosen = [rule for rule in RULES if rule.name in options.names] if options.names else RULES
    for rule in chosen:
        if rule.name in records and not options.names:
            print(f"{rule.name}: already in the record", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="servekit-killers-") as folder:
            records[rule.name] = record = run(rule, Path(folder))
        print(f"{rule.name}: {verdict(record)} ({record['seconds']} s)", flush=True)
        options.record.write_text("".join(json.dumps(each) + "\n" for each in records.values()), encoding="utf-8")
    harmless = [rule.name for rule in chosen if verdict(records[rule.name]) == NO_HARM]
    if harmless:
        sys.exit(f"no harm without: {', '.join(harmless)}")


def parse() -> argparse.Namespace:
    """Return the options; exit with a message if a name is unknown."""
    known = [rule.name for rule in RULES]
    lines = "\n".join(f"  {name}" for name in known)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killers",
        description=f"{(__doc__ or '').partition(chr(10))[0]}\nRules:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="rules to run again (default: those not in the record)"
    )
    parser.add_argument(
        "--record", type=Path, default=RECORD, help="file with a line for each rule (default: %(default)s)"
    )
    parser.add_argument("--table", action="store_true", help="only write the table in docs/results-faults.md")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"unknown rule {', '.join(unknown)}")
    return options


def read(record: Path) -> dict[str, Seen]:
    """Return what is already in the record, by the rule's name."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return {each["rule"]: each for each in map(json.loads, lines)}


def run(rule: Rule, cache: Path) -> Seen:
    """Start the engine without the rule, send its requests, and return what happened."""
    path = os.pathsep.join(filter(None, (str(INSIDE), os.environ.get("PYTHONPATH"))))
    environ = {"PYTHONPATH": path, "GUARD_WITHOUT": rule.left_out, "KILLERS_BACKEND": rule.backend}
    program = ("-m", "benchmarks.killers.serve")
    if rule.wide:
        endpoint = start_wide(cache, environ=environ, program=program)
    else:
        endpoint = make_endpoint(cache, environ=environ, program=program)
    try:
        endpoint.until_ready(START_S)
        target = target_of(endpoint, cache, wide=rule.wide)
        began = time.monotonic()
        seen = rule.look(endpoint, target) if rule.look else harm(endpoint, target, rule.cases)
        ended = not is_alive(target) and wait_for_end(endpoint)
        return {
            "rule": rule.name,
            "requests": list(dict.fromkeys(case.name for case in rule.cases)),
            "wide": rule.wide,
            **seen,
            "exit": endpoint.process.poll() if ended else None,
            "seconds": round(time.monotonic() - began, 1),
            "last": endpoint.lines[-1] if ended else "",
        }
    finally:
        endpoint.finish()


def wait_for_end(endpoint: Endpoint) -> bool:
    """Return whether the endpoint ends by itself."""
    until = time.monotonic() + END_S
    while endpoint.process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    return endpoint.process.poll() is not None


if __name__ == "__main__":
    main()
