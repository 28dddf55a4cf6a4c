"""Resident memory of servekit's own processes, servekit and its keeper, while the real engine serves."""

import urllib.request
from typing import Any

from benchmarks.endpoint import served_by_servekit
from benchmarks.load import run_round
from benchmarks.programs import working_folder
from tests.harness.endpoint import Endpoint
from tests.harness.processes import command_line, descendants, memory_of

NAME = "memory"
ROUNDS = 10
STREAMS, TOKENS, SCRAPES = 32, 16, 50
LIMIT_MIB = 80
MIB = 1024**2


def run(rounds: int | None) -> dict[str, Any]:
    """Return the memory of each process in MiB, when ready and after some hundred requests and scrapes."""
    rounds = rounds or ROUNDS
    with working_folder() as folder, served_by_servekit(folder) as endpoint:
        samples = {"ready": _sample(endpoint)}
        for _ in range(rounds):
            run_round(endpoint, streams=STREAMS, tokens=TOKENS)
            for path in ("metrics", "status", "readyz") * SCRAPES:
                with urllib.request.urlopen(f"{endpoint.observe_url}/{path}", timeout=10) as answer:
                    answer.read()
        samples["after"] = _sample(endpoint)
    return {
        "requests": rounds * STREAMS,
        "scrapes": rounds * SCRAPES,
        "mib": samples,
        "rss_mib": round(sum(each["rss"] for each in samples["after"].values()), 1),
        "pss_mib": round(sum(each["pss"] for each in samples["after"].values()), 1),
        "limit_mib": LIMIT_MIB,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    rows = [f"{'':<22}{'RSS':>11}{'PSS':>11}"]
    for when, sample in result["mib"].items():
        for role, memory in sample.items():
            rows.append(f"{when + ' ' + role:<22}{memory['rss']:>7.1f} MiB{memory['pss']:>7.1f} MiB")
    rows.append(
        f"together {result['rss_mib']} MiB after {result['requests']} requests and {result['scrapes']} scrapes "
        f"of each path (wanted: {result['limit_mib']} MiB)"
    )
    return rows


def _sample(endpoint: Endpoint) -> dict[str, dict[str, float]]:
    keeper = next(pid for pid in descendants(endpoint.pid) if "keeper.py" in command_line(pid))
    sample = {}
    for role, pid in (("servekit", endpoint.pid), ("keeper", keeper)):
        memory = memory_of(pid)
        sample[role] = {"rss": round(memory.rss_bytes / MIB, 1), "pss": round(memory.pss_bytes / MIB, 1)}
    return sample
