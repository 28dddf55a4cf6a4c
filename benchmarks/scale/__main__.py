"""Three replicas in Docker behind the router and the gateway, under load, while replicas are updated, killed and hung.

usage: python -m benchmarks.scale [--requests N] [--clients N] [--pause-s S] [--only EVENT,EVENT...] [--json FILE]

compose.scale.yaml on the CPU with the demo checkpoint, the real router, Caddy and Docker. Images as in the container
tests (CPU_BASE_IMAGE, CADDY_IMAGE). Exits with 1 where a request failed that should not have, or a time is too long.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker

from benchmarks.machine import describe_machine
from benchmarks.scale.events import EVENTS, HANG_S, judge
from benchmarks.scale.load import STEADY, Load
from benchmarks.scale.scene import Scene
from tests.container.stack import Stack

REPLICAS = 3
FILES = ("compose.scale.yaml", "compose.scale.cpu.yaml")
IMAGES = {"ENDPOINT_IMAGE": "servekit-scale:benchmark", "ROUTER_IMAGE": "servekit-router:benchmark"}
_KEY = "sk-" + secrets.token_urlsafe(32)


def main() -> None:
    """Run, print, exit with 1 where something is not as it should be."""
    options = _parse()
    result: dict[str, Any] = {"machine": describe_machine(), "clients": options.clients, "pause_s": options.pause_s}
    with _running() as scene:
        began_s = time.monotonic()
        result["replicas started, s"] = round(scene.all_in(), 1)
        load = Load(scene.stack.port, _KEY, options.pause_s)
        threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(options.clients)]
        for thread in threads:
            thread.start()
        try:
            _play(scene, load, options, result)
        finally:
            load.stopped = True
            for thread in threads:
                thread.join()
        result |= {"requests": load.ended, "seconds": round(time.monotonic() - began_s)}
        result["events"][STEADY] = _seen(load, STEADY, {})
    result["wrong"] = [each for event in result["events"].values() for each in event["wrong"]]
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if result["wrong"] else 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="at least so many (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="parallel clients (default: %(default)s)")
    parser.add_argument(
        "--pause-s",
        type=float,
        default=6,
        help="a client's mean pause between requests while replicas start; none after that (default: %(default)s)",
    )
    parser.add_argument("--only", help=f"of these events, separated by commas: {', '.join(EVENTS)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    options.only = (options.only or ",".join(EVENTS)).split(",")
    if unknown := set(options.only) - EVENTS.keys():
        parser.error(f"--only: no event {', '.join(sorted(unknown))}")
    return options


def _play(scene: Scene, load: Load, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Let the events happen, one after the other; one that goes wrong does not stop the next."""
    events = result["events"] = {}
    for name in options.only:
        print(f"scale: {name} ({load.ended} requests so far)", flush=True)
        figures: dict[str, Any] = {}
        problem = []
        with load.during(name):
            try:
                figures = EVENTS[name].play(scene, load)
            except (AssertionError, LookupError, OSError, TimeoutError, subprocess.SubprocessError) as error:
                traceback.print_exc()
                problem = [f"{name}: {error!r}"[:500]]
                scene.recover()
        events[name] = _seen(load, name, figures)
        events[name]["wrong"] += problem
        print(json.dumps(events[name]), flush=True)
    load.pause_s = 0
    while load.ended < options.requests:
        time.sleep(1)


def _seen(load: Load, event: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        **{what: round(value, 2) for what, value in figures.items()},
        "longest request, s": round(load.longest_s.get(event, 0), 1),
        "outcomes": {what: count for (when, what), count in sorted(load.outcomes.items()) if when == event},
        "wrong": judge(event, figures, load.failed(event)),
    }


@contextmanager
def _running() -> Iterator[Scene]:
    """Build and start the project; remove it in the end."""
    with tempfile.TemporaryDirectory() as name:
        keys = Path(name) / "keys"
        keys.write_text(f"{_KEY}\n")
        keys.chmod(0o440)
        base = os.environ.get("CPU_BASE_IMAGE", "debian:bookworm-slim")
        given = {"CPU_BASE_IMAGE": base, "ROUTER_BASE_IMAGE": base, **IMAGES}
        given |= {"COMPOSE_PROFILES": str(REPLICAS), "SERVEKIT_API_KEYS_FILE": str(keys), "ENDPOINT_MEMORY": "6g"}
        given |= {"CADDY_IMAGE": os.environ.get("CADDY_IMAGE", "caddy:2.10.2"), "SERVEKIT_HANG_S": str(HANG_S)}
        client = docker.from_env(timeout=120)
        stack = Stack(f"servekit-scale-{secrets.token_hex(3)}", Path(name), FILES, client=client, **given)
        scene = Scene(stack, REPLICAS)
        try:
            scene.compose("build")
            scene.compose("up", "--detach")
            scene.favour_the_way()
            yield scene
        except BaseException:
            print(stack.log(), file=sys.stderr)
            raise
        finally:
            stack.down()


if __name__ == "__main__":
    main()
