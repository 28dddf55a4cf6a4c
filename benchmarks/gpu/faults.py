"""Fault injection: how long the shutdown takes, its exit code, and what is left behind."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.endpoint import Measured, Served
from benchmarks.gpu.engine_log import figures
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.streams import Streams
from tests.harness.endpoint import PHASES
from tests.harness.http import get

BRIEF_PHASES = ("preflight", "verify")
"""They last some tenths of a second."""


def drain(run: Setting, server: Served, *, streams: int, tokens: int) -> dict[str, Any]:
    """SIGTERM while streams run: all must finish. Requests arriving at the same moment may be refused or finish."""
    began_s = time.monotonic()
    clients = Streams(server.url, run.key(), count=streams, tokens=tokens)
    clients.all_begun.wait(20)
    first_tokens_s = round(time.monotonic() - began_s, 2)
    late = Streams(server.url, run.key(), count=4 if run.quick else 8, tokens=16)
    asked_s = server.signal(signal.SIGTERM)
    time.sleep(0.5)
    refused = get(f"{server.url}/health")[0]
    ready = get(f"{server.observe_url}/readyz")[1].strip()
    ended = server.ending(asked_s, 60)
    ended |= {"streams": clients.wait(5), "streams_in_the_same_moment": late.wait(5)}
    seen = {"health_while_draining": refused, "readyz_while_draining": ready}
    return ended | seen | {"first_tokens_s": first_tokens_s}


def kill_core(run: Setting, server: Served, *, streams: int) -> dict[str, Any]:
    """SIGKILL for EngineCore while streams run: servekit must log it and exit."""
    clients = Streams(server.url, run.key(), count=streams, tokens=2000)
    clients.first_token.wait(15)
    core = server.core()
    killed_s = time.monotonic()
    os.kill(core, signal.SIGKILL)
    ended = server.ending(killed_s, 60)
    return ended | {"streams": clients.wait(5)}


def stop_core(run: Setting, server: Served, *, within_s: float) -> dict[str, Any]:
    """SIGSTOP for EngineCore while a stream runs: servekit must detect the hang and kill it."""
    clients = Streams(server.url, run.key(), count=1, tokens=1500)
    clients.first_token.wait(15)
    core = server.core()
    stopped_s = time.monotonic()
    os.kill(core, signal.SIGSTOP)
    health = get(f"{server.url}/health")[0]
    ended = server.ending(stopped_s, within_s)
    return ended | {"engine_health_when_stopped": health, "streams": clients.wait(5)}


def refused_start(run: Setting, name: str, profile: Path, model: Path, *flags: str) -> dict[str, Any]:
    """Start a server that cannot work: it must exit by itself, log a reason, and leave nothing behind."""
    server = run.serve(name, profile, model, *flags)
    ended = server.ending(server.started_s, 120)
    if ended["exit_code"] is None:
        server.sweep()
    return ended | {"told": told(server), "engine": figures(server)}


def terminate_in_phase(run: Setting, phase: str, profile: Path, model: Path, near: threading.Event) -> dict[str, Any]:
    """SIGTERM as soon as the start reaches a phase; set `near` in the phase before it."""
    server = run.serve(f"sigterm-{phase}", profile, model)
    wanted = PHASES.index(phase)
    seen = ""
    while server.process.poll() is None and server.age_s < 240:  # noqa: PLR2004 - longer than any warm start
        seen = server.phase() or seen
        reached = PHASES.index(seen) if seen else -1
        if reached >= wanted - 1:
            near.set()
        if reached >= wanted or server.is_ready():
            break
        time.sleep(0.005)
    if phase not in BRIEF_PHASES:
        time.sleep(0.3)
    at_s = server.age_s
    ended = server.ending(server.signal(signal.SIGTERM), 60)
    return {"phase": seen, "at_s": round(at_s, 2)} | ended


def told(server: Measured) -> list[str]:
    """Return servekit's own warnings and errors, without the engine's lines that it repeats."""
    lines = [text for text in server.lines if "servekit" in text and ("ERROR" in text or "WARNING" in text)]
    return [line for line in lines if ":   " not in line][-8:]
