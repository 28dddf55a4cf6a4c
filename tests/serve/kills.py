"""servekit killed by SIGKILL at a moment of its start: which processes survive."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_engine.py")
WITHIN_S = 30.0
"""Time within which the kernel and the keeper must have ended everything."""


def survivors(moment_s: float | None, folder: Path, cache: Path) -> tuple[bool, list[str]]:
    """Start servekit and kill it after `moment_s`, or as soon as the engine runs.

    Return whether the fake vLLM ran by then, and the command lines of the processes that still run after WITHIN_S;
    these are killed. If `cache` does not hold the demo checkpoint, servekit builds it first.
    """
    mark = uuid.uuid4().hex
    engine = folder / "engine"
    engine.write_text(f'#!/bin/sh\nexec {sys.executable} -I {FAKE} "$@"\n')
    engine.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")}
    own = {"SERVEKIT_STATE_DIR": f"{folder}/{mark}", "SERVEKIT_CACHE_DIR": str(cache), "KILLS_MARK": mark}
    ports = ["--port", str(_free_port()), "--observe-port", str(_free_port())]
    process = subprocess.Popen(
        [sys.executable, "-m", "servekit.cli.main", "serve", "--target", "cpu", "--engine", str(engine), *ports],
        cwd=ROOT,
        env=kept | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + (60 if moment_s is None else moment_s)
    while time.monotonic() < deadline and not (moment_s is None and _has_engine(mark)):
        time.sleep(0.005)
    met = _has_engine(mark)
    process.kill()
    process.wait()
    deadline = time.monotonic() + WITHIN_S
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return met, list(left.values())


def _has_engine(mark: str) -> bool:
    return any(str(FAKE) in command for command in _marked(mark).values())


def _marked(mark: str) -> dict[int, str]:
    """Return the running processes that have the mark in their environment, with their command lines."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
