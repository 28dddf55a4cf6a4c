"""What the guard costs: the same engine with and without it, turn and turn about, in one run.

Usage: python benchmarks/guard_overhead.py --engine ENGINE_VENV/bin/vllm [--rounds 20] [--streams 32] [--burst 256]

Prints one JSON object: throughput of concurrent streams with the guard over that without (ratio of totals,
and of the median round); for requests that all come at once, when EngineCore had the first of them and half of
them; and the median time in microseconds of `/v1/models` and of refused requests on a connection that is kept open.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from servekit.demo.build import build_demo_model
from servekit.serve.guard import Guard, GuardSettings, prepare_guard
from servekit.serve.guard.keys import load_keys

INSIDE = Path(__file__).parent / "inside"
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
START_S = 180
Measured = TypeVar("Measured")
BARE = "x-bare: 1\r\n"
HANDED_OVER = "/handed-over"
"""`PATH` of guard_switch.py, out of reach from here."""


def main() -> None:
    """Start an engine, measure, print, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--burst", type=int, default=256, help="requests that come at once")
    parser.add_argument("--burst-rounds", type=int, default=20)
    parser.add_argument("--latency-requests", type=int, default=2000)
    options = parser.parse_args()
    # SIGTERM would end this program and leave the engine: it runs in a session of its own
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_demo_model(folder / "model")
        settings = GuardSettings(state_dir=folder / "state", max_in_flight=max(options.streams, options.burst))
        guard = prepare_guard(settings, folder / "run")
        assert guard.key_file is not None
        port = free_port()
        process = start(options.engine, folder, port, guard)
        try:
            await_ready(process, port)
            measured = asyncio.run(measure(port, load_keys(guard.key_file)[0], options))
        finally:
            stop(process)
    print(json.dumps(measured, indent=2))


async def measure(port: int, key: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return every figure of one run."""
    await stream_round(port, key, "", options)  # warm-up
    seconds = await in_turns(lambda header: stream_round(port, key, header, options), options.rounds)
    burst = await bursts(port, key, options.burst, options.burst_rounds)
    latency = await latencies(port, key, options.latency_requests)
    guarded, bare = seconds["guarded"], seconds["bare"]
    tokens = options.streams * options.tokens
    return {
        "streams": options.streams,
        "tokens_per_stream": options.tokens,
        "rounds": options.rounds,
        "tokens_per_s": {name: round(tokens / statistics.median(values)) for name, values in seconds.items()},
        "throughput_ratio_of_totals": round(sum(bare) / sum(guarded), 4),
        "throughput_ratio_of_medians": round(statistics.median(bare) / statistics.median(guarded), 4),
        "burst": burst,
        "median_latency_us": latency,
        "added_to_models_us": round(latency["models_guarded"] - latency["models_bare"], 1),
    }


async def in_turns(measure: Callable[[str], Awaitable[Measured]], rounds: int) -> dict[str, list[Measured]]:
    """Return what each round measured with and without the guard; which of them is first changes every time."""
    measured: dict[str, list[Measured]] = {"guarded": [], "bare": []}
    for number in range(rounds):
        turns = [("guarded", ""), ("bare", BARE)]
        for name, header in turns if number % 2 else reversed(turns):
            measured[name].append(await measure(header))
    return measured


async def stream_round(port: int, key: str, header: str, options: argparse.Namespace) -> float:
    """Return the seconds that all streams together took."""
    body = json.dumps(
        {
            "model": "demo",
            "messages": [{"role": "user", "content": "Describe the sea in many words."}],
            "max_tokens": options.tokens,
            "ignore_eos": True,
            "stream": True,
        }
    )
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{header}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
    began = time.perf_counter()
    answers = await asyncio.gather(*(whole_answer(port, request) for _ in range(options.streams)))
    elapsed_s = time.perf_counter() - began
    assert all(answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer for answer in answers)
    return elapsed_s


async def bursts(port: int, key: str, count: int, rounds: int) -> dict[str, Any]:
    """Return the milliseconds from the first of `count` requests at once until EngineCore had the first and half."""
    await burst_round(port, key, "", count)  # warm-up
    taken_ms = await in_turns(lambda header: burst_round(port, key, header, count), rounds)
    told: dict[str, Any] = {"requests": count, "rounds": rounds}
    for place, what in enumerate(("first", "half")):
        each_ms = {name: [values[place] for values in taken] for name, taken in taken_ms.items()}
        added_ms = [one - other for one, other in zip(each_ms["guarded"], each_ms["bare"], strict=True)]
        told[f"{what}_handed_over_ms"] = {name: round(statistics.median(values), 1) for name, values in each_ms.items()}
        told[f"{what}_added_ms"] = {
            "mean": round(statistics.mean(added_ms), 1),
            "error": round(statistics.stdev(added_ms) / math.sqrt(rounds), 1),
        }
    return told


async def burst_round(port: int, key: str, header: str, count: int) -> tuple[float, float]:
    """Send `count` requests at once on open connections."""
    body = json.dumps({"model": "demo", "prompt": "1", "user": "x" * 1000, "max_tokens": 1, "stream": True})
    request = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{header}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
    connections = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(count)))
    await handed_over(port)  # forget those before
    for _, writer in connections:
        writer.write(request)
    answers = await asyncio.gather(*(reader.read(-1) for reader, _ in connections))
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    for _, writer in connections:
        writer.close()
    seconds = await handed_over(port)
    return 1000 * seconds[0], 1000 * seconds[count // 2]


async def handed_over(port: int) -> list[float]:
    """Ask the switch when EngineCore had each request."""
    answer = await whole_answer(port, f"GET {HANDED_OVER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return sorted(json.loads(answer.partition(b"\r\n\r\n")[2]))


async def whole_answer(port: int, request: bytes) -> bytes:
    """Send one request on a connection of its own and return everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read(-1)
    writer.close()
    return answer


async def latencies(port: int, key: str, count: int) -> dict[str, float]:
    """Return the median microseconds of each kind of small request, all kinds taken in turn."""
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


def start(engine: Path, folder: Path, port: int, guard: Guard) -> "subprocess.Popen[bytes]":
    """Start vLLM on the CPU with the switchable guard."""
    arguments = [
        "guard_switch.Switch" if argument.startswith("servekit_guard.") else argument for argument in guard.argv
    ]
    environment = os.environ | CPU_ENVIRONMENT | dict(guard.environment)
    environment["PYTHONPATH"] += f":{INSIDE}"
    return subprocess.Popen(
        [
            *(str(engine), "serve", str(folder / "model"), "--served-model-name", "demo"),
            *("--host", "127.0.0.1", "--port", str(port), "--kv-cache-dtype", "auto", "--max-model-len", "2048"),
            *("--max-num-seqs", "64", "--enforce-eager", "--skip-mm-profiling"),
            *("--limit-mm-per-prompt", '{"image": 3, "audio": 0, "video": 0}', "--disable-uvicorn-access-log"),
            *arguments,
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def await_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    """Wait until the engine is healthy."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise SystemExit("the engine did not come up; start it by hand with the same arguments to see why")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the engine and everything it started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
