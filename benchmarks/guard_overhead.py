"""What the guard costs: the same engine with and without it, alternately, in one run.

Throughput of concurrent streams with the guard over that without (ratio of totals, and of the median round); for
a burst of requests, when EngineCore had the first and half of them; and the median time in microseconds of
`/v1/models` and of refused requests on a kept-alive connection.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.programs import engine_program, working_folder
from servekit.measure.statistics import ratio_of_medians, standard_error
from servekit.serve.guard import GuardSettings, guard_arguments, guard_environment, prepare_guard
from servekit.serve.guard.keys import load_keys
from tests.harness.engine import bare_engine

NAME = "guard"
ROUNDS = 20
STREAMS, TOKENS = 32, 64
BURST, LATENCY_REQUESTS = 256, 2000
INSIDE = Path(__file__).parent / "inside"
Measured = TypeVar("Measured")
BARE = "x-bare: 1\r\n"
HANDED_OVER = "/handed-over"
"""`PATH` of guard_switch.py, out of reach from here."""


def run(rounds: int | None) -> dict[str, Any]:
    """Start an engine with the switchable guard, and return every figure."""
    with working_folder() as folder:
        guard = prepare_guard(
            GuardSettings(state_dir=folder / "state", max_in_flight=max(STREAMS, BURST)), folder / "run"
        )
        assert guard.key_file is not None
        words = ["guard_switch.Switch" if word.startswith("servekit_guard.") else word for word in guard_arguments(())]
        own = ["--kv-cache-dtype", "auto", "--max-model-len", "2048", "--max-num-seqs", "64"]
        flags = [*own, "--disable-uvicorn-access-log", *words]
        environ = guard_environment(guard.config_path)
        environ["PYTHONPATH"] += f":{INSIDE}"
        server = bare_engine(folder / "model", folder / "engine.log", flags, environ, program=engine_program())
        with server.start():
            server.until_ready()
            return asyncio.run(measure(server.port, load_keys(guard.key_file)[0], rounds or ROUNDS))


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines."""
    speed, burst, latency = result["tokens_per_s"], result["burst"], result["median_latency_us"]
    rows = []
    rows.append(
        f"{result['streams']} streams: {speed['guarded']} tokens/s with the guard, {speed['bare']} without, "
        f"{result['throughput_ratio_of_totals']} of totals, {result['throughput_ratio_of_medians']} of medians"
    )
    for what in ("first", "half"):
        each, added = burst[f"{what}_handed_over_ms"], burst[f"{what}_added_ms"]
        rows.append(
            f"{burst['requests']} requests at once, EngineCore has the {what}: {each['guarded']} ms with the guard, "
            f"{each['bare']} ms without; {added['mean']} +- {added['error']} ms added"
        )
    return [*rows, *(f"{name:<16}{value:>9} us" for name, value in latency.items())]


async def measure(port: int, key: str, rounds: int) -> dict[str, Any]:
    """Return every figure of one run."""
    await stream_round(port, key, "")  # warm-up
    seconds = await in_turns(lambda header: stream_round(port, key, header), rounds)
    burst = await bursts(port, key, BURST, rounds)
    latency = await latencies(port, key, LATENCY_REQUESTS)
    guarded, bare = seconds["guarded"], seconds["bare"]
    tokens = STREAMS * TOKENS
    return {
        "streams": STREAMS,
        "tokens_per_stream": TOKENS,
        "rounds": rounds,
        "tokens_per_s": {name: round(tokens / statistics.median(values)) for name, values in seconds.items()},
        "throughput_ratio_of_totals": round(sum(bare) / sum(guarded), 4),
        "throughput_ratio_of_medians": round(ratio_of_medians(bare, guarded), 4),
        "burst": burst,
        "median_latency_us": latency,
        "added_to_models_us": round(latency["models_guarded"] - latency["models_bare"], 1),
    }


async def in_turns(measure: Callable[[str], Awaitable[Measured]], rounds: int) -> dict[str, list[Measured]]:
    """Return what each round measured with and without the guard; the order changes from round to round."""
    measured: dict[str, list[Measured]] = {"guarded": [], "bare": []}
    for number in range(rounds):
        turns = [("guarded", ""), ("bare", BARE)]
        for name, header in turns if number % 2 else reversed(turns):
            measured[name].append(await measure(header))
    return measured


async def stream_round(port: int, key: str, header: str) -> float:
    """Return the seconds until the last stream ended."""
    body = json.dumps(
        {
            "model": "demo",
            "messages": [{"role": "user", "content": "Describe the sea in many words."}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
    )
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{header}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
    began = time.perf_counter()
    answers = await asyncio.gather(*(whole_answer(port, request) for _ in range(STREAMS)))
    elapsed_s = time.perf_counter() - began
    assert all(answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer for answer in answers)
    return elapsed_s


async def bursts(port: int, key: str, count: int, rounds: int) -> dict[str, Any]:
    """Return the milliseconds from the start of a burst of `count` requests until EngineCore had the first and half."""
    await burst_round(port, key, "", count)  # warm-up
    taken_ms = await in_turns(lambda header: burst_round(port, key, header, count), rounds)
    told: dict[str, Any] = {"requests": count, "rounds": rounds}
    for place, what in enumerate(("first", "half")):
        each_ms = {name: [values[place] for values in taken] for name, taken in taken_ms.items()}
        added_ms = [one - other for one, other in zip(each_ms["guarded"], each_ms["bare"], strict=True)]
        told[f"{what}_handed_over_ms"] = {name: round(statistics.median(values), 1) for name, values in each_ms.items()}
        told[f"{what}_added_ms"] = {
            "mean": round(statistics.mean(added_ms), 1),
            "error": round(standard_error(added_ms), 1),
        }
    return told


async def burst_round(port: int, key: str, header: str, count: int) -> tuple[float, float]:
    """Send a burst of `count` requests on open connections."""
    body = json.dumps({"model": "demo", "prompt": "1", "user": "x" * 1000, "max_tokens": 1, "stream": True})
    request = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{header}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
    connections = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(count)))
    await handed_over(port)  # reset the switch's figures
    for _, writer in connections:
        writer.write(request)
    answers = await asyncio.gather(*(reader.read(-1) for reader, _ in connections))
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    for _, writer in connections:
        writer.close()
    seconds = await handed_over(port)
    return 1000 * seconds[0], 1000 * seconds[count // 2]


async def handed_over(port: int) -> list[float]:
    """Read from the switch when EngineCore had each request."""
    answer = await whole_answer(port, f"GET {HANDED_OVER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return sorted(json.loads(answer.partition(b"\r\n\r\n")[2]))


async def whole_answer(port: int, request: bytes) -> bytes:
    """Send one request on a new connection and return everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read(-1)
    writer.close()
    return answer


async def latencies(port: int, key: str, count: int) -> dict[str, float]:
    """Return the median microseconds of each kind of small request, with all kinds alternating."""
    authorization = f"Authorization: Bearer {key}\r\n"
    kinds = {
        "models_guarded": f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{authorization}\r\n",
        "models_bare": f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{BARE}\r\n",
        "refused_401": "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        "refused_404": f"GET /invocations HTTP/1.1\r\nHost: x\r\n{authorization}\r\n",
        "not_found_bare": f"GET /nowhere HTTP/1.1\r\nHost: x\r\n{BARE}\r\n",
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken_us: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(count):
        for name, request in kinds.items():
            began = time.perf_counter()
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            taken_us[name].append((time.perf_counter() - began) * 1e6)
    writer.close()
    return {name: round(statistics.median(values), 1) for name, values in taken_us.items()}
