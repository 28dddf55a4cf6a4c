"""An endpoint on the real engine, started by servekit or by hand with the same arguments; no process outlives it."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.programs import ROOT, SERVEKIT, clean_environment, engine_program
from tests.harness.endpoint import Endpoint
from tests.harness.ports import free_port
from tests.harness.server import Server

START_S = 300
MODEL = "bench"
_GUARDED = {"--middleware": 1, "--structured-outputs-config": 1, "--allowed-media-domains": 1, "--allowed-origins": 1}
"""Arguments that only the guard needs, with the number of values each takes."""
_GUARD_VARIABLES = frozenset({"PYTHONPATH", "SERVEKIT_GUARD_CONFIG", "VLLM_MEDIA_CONNECTOR"})


@contextmanager
def served_by_servekit(folder: Path, port: int | None = None, **more: str) -> Iterator[Endpoint]:
    """Yield a ready endpoint that `servekit serve` has started; `more` are variables for it."""
    with Endpoint(
        [], _settings(folder) | more, port=port, model=MODEL, log=folder / "servekit.log"
    ).start() as endpoint:
        endpoint.until_ready(START_S)
        yield endpoint


@contextmanager
def served_by_hand(folder: Path) -> Iterator[Server]:
    """Yield a ready `vllm serve` without the guard, with the arguments and the environment of `servekit plan`."""
    port = free_port()
    argv = [str(SERVEKIT), "plan", "--format", "json", "--port", str(port)]
    said = subprocess.run(argv, cwd=ROOT, env=_settings(folder), stdout=subprocess.PIPE, check=True).stdout
    plan = json.loads(said)
    environ = clean_environment() | unguarded_environment(plan)
    with Server(unguarded(plan["argv"]), environ, port, model=MODEL, log=folder / "hand.log").start() as server:
        server.until_ready(START_S)
        yield server


def unguarded(argv: Sequence[str]) -> list[str]:
    """Return the engine's command line without the arguments of servekit's guard."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in _GUARDED:
            for _ in range(_GUARDED[word]):
                next(words)
        else:
            kept.append(word)
    return kept


def unguarded_environment(plan: Mapping[str, Any]) -> dict[str, str]:
    """Return what a plan adds to the engine's environment, without the guard's part."""
    return {name: value for name, value in plan["environment"].items() if name not in _GUARD_VARIABLES}


def _settings(folder: Path) -> dict[str, str]:
    own = {
        "SERVEKIT_TARGET": "cpu",
        "SERVEKIT_ENGINE": engine_program(),
        "SERVEKIT_MODEL": str(folder / "model"),
        "SERVEKIT_SERVED_NAME": MODEL,
        "SERVEKIT_STATE_DIR": str(folder),
        "SERVEKIT_CACHE_DIR": str(folder),
    }
    return clean_environment() | own
