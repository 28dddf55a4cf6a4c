"""Soak an endpoint with everything clients do, or saturate it, while probing it: `python -m benchmarks.soak`.

usage: python -m benchmarks.soak [--minutes M] [--clients N] [--saturate SECONDS --requests N] [--json FILE]

The real engine on the CPU, the demo checkpoint, loopback only. Exits with 1 on a failure: a probe that was not green,
a request that was accepted and not answered, an unexpected answer, a slot that was not released.
"""

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.endpoint import served_by_servekit
from benchmarks.machine import describe_machine
from benchmarks.programs import working_folder
from benchmarks.soak_probes import Prober, latency_lines
from benchmarks.soak_requests import KINDS, HangUp, Kind, chat
from tests.harness.endpoint import Endpoint
from tests.harness.processes import PROC, memory_of

_ANSWER_S = 180
_SETTLE_S = 60
_MIB = 1024**2


@dataclass
class Log:
    """The outcomes of the requests: the count of each (kind, outcome); and all failures."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    """Soak or saturate, print the result, exit with 1 on a failure."""
    options = parse()
    with working_folder() as folder, served_by_servekit(folder) as endpoint:
        result = asyncio.run(soak(endpoint, options))
        result["engine_log_errors"] = _errors(folder / "servekit.log")
    result["machine"] = describe_machine()
    print("\n".join(report(result)))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if result["wrong"] else 0)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long to soak (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="parallel clients (default: %(default)s)")
    parser.add_argument("--saturate", type=float, metavar="SECONDS", help="saturate for this long instead")
    parser.add_argument("--requests", type=int, default=256, help="requests in parallel (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clients' random choices")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    return parser.parse_args()


async def soak(endpoint: Endpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Load the endpoint from many clients, watching its probes and its memory; return the result."""
    log = Log()
    seconds = options.saturate or 60 * options.minutes
    clients = options.requests if options.saturate else options.clients
    kinds = (_SATURATING,) if options.saturate else KINDS
    before = _open(endpoint.pid)
    prober = await asyncio.to_thread(Prober, endpoint.observe_url)
    began_s = time.monotonic()
    end_s = began_s + seconds
    watch = asyncio.create_task(_watch(endpoint, end_s))
    await asyncio.gather(*(_client(endpoint, kinds, options.seed + n, end_s, log) for n in range(clients)))
    loaded_s = time.monotonic() - began_s
    rows = await watch
    settled_s = await _settle(endpoint)
    answers = await asyncio.to_thread(prober.stop)
    counters = await asyncio.to_thread(_guard_counters, endpoint)
    wrong = list(log.wrong)
    wrong += [f"{path} {each}" for path, seen in answers.items() for each in seen.wrong]
    if settled_s is None:
        wrong.append(f"slots leaked: {counters}")
    return {
        "mode": "saturation" if options.saturate else "soak",
        "clients": clients,
        "seconds": round(loaded_s, 1),
        "outcomes": {kind.name: _outcomes_of(log, kind) for kind in kinds},
        "probes": latency_lines(answers),
        "slow_probes": {path: seen.slow for path, seen in answers.items()},
        "settled_s": settled_s,
        "guard": counters,
        "rss_mib": rows,
        "open": {"before": before, "after": _open(endpoint.pid)},
        "wrong": wrong,
    }


async def _client(endpoint: Endpoint, kinds: tuple[Kind, ...], seed: int, end_s: float, log: Log) -> None:
    chance = random.Random(seed)
    while time.monotonic() < end_s:
        kind = chance.choices(kinds, [kind.weight for kind in kinds])[0]
        outcome = await _send(endpoint, kind, chance)
        log.outcomes[kind.name, outcome] += 1
        if kind.hang_up is HangUp.NEVER and outcome not in {str(status) for status in kind.statuses}:
            log.wrong.append(f"{kind.name}: {outcome}")


async def _send(endpoint: Endpoint, kind: Kind, chance: random.Random) -> str:
    """Send one request of this kind on a new connection; return the status, or how it ended."""
    host, _, port = endpoint.url.removeprefix("http://").partition(":")
    message = kind.make(chance, endpoint.model, endpoint.key)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await _talk(kind, message, reader, writer, chance)
    except TimeoutError:
        return f"no answer in {_ANSWER_S} s"
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _talk(
    kind: Kind, message: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
) -> str:
    if kind.hang_up is HangUp.IN_THE_BODY:
        message = message[: -chance.randint(1, 30)]
    answer = asyncio.create_task(
        _read_some(reader, chance) if kind.hang_up is HangUp.IN_THE_STREAM else reader.read(-1)
    )
    with suppress(OSError):
        writer.write(message)
        await writer.drain()
    if kind.hang_up in {HangUp.IN_THE_BODY, HangUp.BEFORE_THE_ANSWER}:
        await asyncio.sleep(chance.uniform(0, 0.3))
        answer.cancel()
        return "hung up"
    try:
        return _outcome(kind, await answer)
    except OSError:
        return "0"


async def _read_some(reader: asyncio.StreamReader, chance: random.Random) -> bytes:
    text = b""
    for _ in range(chance.randint(1, 12)):
        piece = await reader.read(4096)
        if not piece:
            break
        text += piece
    return text


def _outcome(kind: Kind, answer: bytes) -> str:
    """Return the status of a complete answer, or what is missing from it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(maxsplit=2)
    if len(words) < 2:  # noqa: PLR2004 - version and status
        return "0"
    status = words[1].decode()
    if kind.hang_up is HangUp.IN_THE_STREAM:
        return "hung up" if status == "200" else status
    if kind.streamed and not body.rstrip(b"\r\n0").endswith(b"data: [DONE]"):
        return f"{status}, cut: {body[-80:]!r}"
    if not kind.streamed and not body.strip():
        return f"{status}, empty"
    if status != "200" and b'"error"' not in body and b'"detail"' not in body:
        return f"{status}, not told why"
    return status


def _saturate(chance: random.Random, model: str, key: str) -> bytes:
    return chat(chance, model, key, stream=True, max_tokens=64)


_SATURATING = Kind("stream of 64 tokens", 1, _saturate, streamed=True)


async def _watch(endpoint: Endpoint, end_s: float) -> list[dict[str, float]]:
    """Return servekit's resident memory and the requests in flight, sampled about every ten seconds."""
    rows = []
    began_s = time.monotonic()
    while (now_s := time.monotonic()) < end_s:
        counters = await asyncio.to_thread(_guard_counters, endpoint)
        rss = memory_of(endpoint.pid).rss_bytes / _MIB
        rows.append({"s": round(now_s - began_s), "mib": round(rss, 2), "in_flight": counters.get("in_flight", -1)})
        await asyncio.sleep(min(10, max(0.1, end_s - now_s)))
    rows.append({"s": round(time.monotonic() - began_s), "mib": round(memory_of(endpoint.pid).rss_bytes / _MIB, 2)})
    return rows


async def _settle(endpoint: Endpoint) -> float | None:
    """Wait until every slot and every byte is released; return the seconds it took, None on a timeout."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < _SETTLE_S:
        counters = await asyncio.to_thread(_guard_counters, endpoint)
        if counters.get("in_flight") == 0 and counters.get("buffered_bytes") == 0:
            return round(time.monotonic() - began_s, 1)
        await asyncio.sleep(0.2)
    return None


def _guard_counters(endpoint: Endpoint) -> dict[str, float]:
    """Return the guard's gauges, and its counters summed by outcome, from servekit's metrics page."""
    with urllib.request.urlopen(f"{endpoint.observe_url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        name, _, value = line.removeprefix("servekit_guard_").rpartition(" ")
        if line.startswith("servekit_guard_requests_total{"):
            found[name.partition('outcome="')[2].partition('"')[0]] += int(float(value))
        elif line.startswith(("servekit_guard_in_flight ", "servekit_guard_buffered_bytes ")):
            found[name] += int(float(value))
    return dict(found)


def _open(pid: int) -> dict[str, int]:
    """Return the numbers of a process's threads, open files and major page faults."""
    folder = PROC / str(pid)
    return {
        "threads": len(list((folder / "task").iterdir())),
        "files": len(list((folder / "fd").iterdir())),
        "major_faults": int((folder / "stat").read_text().rpartition(")")[2].split()[9]),
    }


def _outcomes_of(log: Log, kind: Kind) -> dict[str, int]:
    return {outcome: count for (name, outcome), count in sorted(log.outcomes.items()) if name == kind.name}


def _errors(log: Path) -> list[str]:
    """Return the lines of the log that report an exception."""
    return [
        line[:300] for line in log.read_text(errors="replace").splitlines() if "Traceback" in line or "Error:" in line
    ][:40]


def report(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    memory = [row["mib"] for row in result["rss_mib"]]
    asked = sum(count for counts in result["outcomes"].values() for count in counts.values())
    lines = [f"{result['mode']}: {asked} requests from {result['clients']} clients in {result['seconds']} s"]
    lines += [f"  {name}: {counts}" for name, counts in result["outcomes"].items()]
    lines += [f"  {line}" for line in result["probes"]]
    most = max(row.get("in_flight", 0) for row in result["rss_mib"])
    lines += [
        f"  most in flight {most}; all slots back after {result['settled_s']} s; guard {result['guard']}",
        f"  servekit's memory: {memory[0]} MiB at first, {memory[-1]} MiB at the end, {max(memory)} MiB at most",
        f"  servekit's threads and open files: {result['open']}",
        f"  lines of the log with an exception: {len(result['engine_log_errors'])}",
        *(f"    {line}" for line in result["engine_log_errors"][:10]),
        f"  wrong: {len(result['wrong'])}",
        *(f"    {line}" for line in result["wrong"][:40]),
    ]
    return lines


if __name__ == "__main__":
    main()
