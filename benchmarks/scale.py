"""Three replicas in Docker behind the router and the gateway, under load, while replicas are updated, killed and hung.

usage: python -m benchmarks.scale [--requests N] [--clients N] [--pause-s S] [--json FILE]

compose.scale.yaml on the CPU with the demo checkpoint, the real router, Caddy and Docker. Images as in the container
tests (CPU_BASE_IMAGE, CADDY_IMAGE). Exits with 1 where a request failed that should not have.
"""

import argparse
import http.client
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from benchmarks.machine import describe_machine
from tests.container.stack import Stack

REPLICAS = 3
FILES = ("compose.scale.yaml", "compose.scale.cpu.yaml")
ROUTER_TAG = "servekit-router:benchmark"
IMAGE = "servekit-test:cpu"


@dataclass
class Load:
    """Clients that send chat requests until they are told to stop; half are streams."""

    port: int
    key: str
    pause_s: float = 0.0
    """Mean of the pause of a client between two requests."""
    event: str = "steady"
    stopped: bool = False
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many requests ended in which way, by the event in which they ended."""
    longest_s: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, seed: int) -> None:
        """Send one request after the other."""
        draw = random.Random(seed)
        while not self.stopped:
            stream = draw.choice((False, True))
            began = time.monotonic()
            try:
                outcome = self.ask(stream=stream, tokens=draw.choice((4, 16, 64)))
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome = type(error).__name__
            with self.lock:
                self.outcomes[self.event, f"{'stream' if stream else 'whole'}: {outcome}"] += 1
                self.longest_s[self.event] = max(self.longest_s.get(self.event, 0.0), time.monotonic() - began)
            time.sleep(draw.uniform(0, 2 * self.pause_s))

    def ask(self, *, stream: bool, tokens: int) -> str:
        """Send one request; return "ok", the status, or how its stream ended."""
        message = {"role": "user", "content": f"say {secrets.token_hex(3)}"}
        body = {
            "model": "gemma4-demo",
            "messages": [message],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": stream,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        try:
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            data = answer.read().decode()
        except http.client.IncompleteRead:
            return "cut"
        finally:
            connection.close()
        if answer.status != http.client.OK:
            return str(answer.status)
        if not stream:
            return "ok" if json.loads(data)["usage"]["completion_tokens"] == tokens else "short"
        if data.rstrip().endswith("data: [DONE]") and '"error"' not in data:
            return "ok"
        return "error event" if '"error"' in data else "cut"

    @contextmanager
    def during(self, event: str) -> Iterator[None]:
        """Name what happens meanwhile."""
        print(f"scale: {event} ({sum(self.outcomes.values())} requests so far)", flush=True)
        before, self.event = self.event, event
        yield
        time.sleep(3)
        self.event = before

    def failed(self, event: str) -> dict[str, int]:
        """Return the outcomes in an event that are not ok."""
        return {
            what: count for (when, what), count in self.outcomes.items() if when == event and not what.endswith("ok")
        }


class Scene:
    """The running project."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def compose(self, *words: str) -> None:
        """Run Compose."""
        self.stack.compose(*words, within_s=900)

    def signal(self, replica: int, part: str, signal: str) -> None:
        """Send a signal to a process of a replica."""
        container = self.stack.containers(f"servekit-{replica}")[0]
        seek = f"tr '\\0' ' ' < $p/cmdline | grep -q '{part}'"
        program = f"for p in /proc/[0-9]*; do {seek} && kill -{signal} ${{p#/proc/}}; done; true"
        container.exec_run(["bash", "-c", program])

    def workers(self) -> dict[str, bool]:
        """Return each replica by its number, and whether the router has it in rotation."""
        container = self.stack.containers("router")[0]
        networks = container.attrs["NetworkSettings"]["Networks"]
        address = next(each["IPAddress"] for each in networks.values())
        connection = http.client.HTTPConnection(address, 8000, timeout=5)
        try:
            connection.request("GET", "/workers")
            found = json.loads(connection.getresponse().read())["workers"]
        finally:
            connection.close()
        return {each["url"].partition("servekit-")[2].partition(":")[0]: each["is_healthy"] for each in found}

    def until(self, condition: Callable[[dict[str, bool]], bool], what: str, within_s: float = 400) -> float:
        """Wait until the router's list is so; return the seconds."""
        began = time.monotonic()
        while time.monotonic() - began < within_s:
            with suppress(OSError, http.client.HTTPException, ValueError, IndexError, StopIteration):
                if condition(self.workers()):
                    return time.monotonic() - began
            time.sleep(0.05)
        raise TimeoutError(what)

    def all_in(self) -> float:
        """Wait until every replica is in rotation."""
        return self.until(lambda found: list(found.values()) == [True] * REPLICAS, "three healthy replicas")


def play(scene: Scene, load: Load, requests: int) -> dict[str, float]:
    """Let everything happen, one thing after the other; return the measured times in seconds."""
    times: dict[str, float] = {}
    with load.during("rolling update"):
        for replica in range(1, REPLICAS + 1):
            scene.compose("up", "--detach", "--no-deps", "--force-recreate", f"servekit-{replica}")
            scene.all_in()
    with load.during("SIGTERM"):
        container = scene.stack.containers("servekit-1")[0]
        container.kill("SIGTERM")
        times["out of rotation after SIGTERM"] = scene.until(lambda found: not found["1"], "servekit-1 out")
        container.wait(timeout=120)
        with load.during("router restarted with a replica down"):
            scene.stack.containers("router")[0].restart(timeout=5)
            began = time.monotonic()
            while load.ask(stream=False, tokens=4) != "ok":
                time.sleep(0.05)
            times["served after the router's restart"] = time.monotonic() - began
        container.start()
        scene.all_in()
    with load.during("EngineCore killed"):
        scene.signal(1, "VLLM::EngineCor", "KILL")
        times["out of rotation after EngineCore's death"] = scene.until(lambda found: not found["1"], "servekit-1 out")
        scene.all_in()
    with load.during("container killed"):
        container = scene.stack.containers("servekit-2")[0]
        container.kill("SIGKILL")
        times["out of rotation after a container's death"] = scene.until(lambda found: not found["2"], "servekit-2 out")
        container.start()
        scene.all_in()
    with load.during("server stopped by SIGSTOP"):
        scene.signal(3, "vllm serve", "STOP")
        times["out of rotation after SIGSTOP"] = scene.until(lambda found: not found["3"], "servekit-3 out")
        scene.all_in()
    while sum(load.outcomes.values()) < requests:
        time.sleep(1)
    return times


def judge(load: Load) -> list[str]:
    """Return what should not have happened."""
    wrong = [
        f"{event}: {load.failed(event)}" for event in ("steady", "rolling update", "SIGTERM") if load.failed(event)
    ]
    for event in ("EngineCore killed", "container killed", "server stopped by SIGSTOP"):
        others = {what: count for what, count in load.failed(event).items() if not what.startswith("stream: ")}
        if others:
            wrong.append(f"{event}: {others}")
    return wrong


def main() -> None:
    """Run, print, exit with 1 where a request failed that should not have."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="at least so many (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="parallel clients (default: %(default)s)")
    parser.add_argument("--pause-s", type=float, default=2, help="between a client's requests (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = folder / "keys"
        key = "sk-" + secrets.token_urlsafe(32)
        keys.write_text(f"{key}\n")
        keys.chmod(0o440)
        base = os.environ.get("CPU_BASE_IMAGE", "debian:bookworm-slim")
        given = {"ENDPOINT_IMAGE": IMAGE, "CPU_BASE_IMAGE": base, "ROUTER_BASE_IMAGE": base, "ROUTER_IMAGE": ROUTER_TAG}
        given |= {"COMPOSE_PROFILES": str(REPLICAS), "SERVEKIT_API_KEYS_FILE": str(keys), "SERVEKIT_HANG_S": "30"}
        given |= {"CADDY_IMAGE": os.environ.get("CADDY_IMAGE", "caddy:2.10.2"), "ENDPOINT_MEMORY": "6g"}
        client = docker.from_env(timeout=120)
        stack = Stack(f"servekit-scale-{secrets.token_hex(3)}", folder, FILES, client=client, **given)
        scene, load = Scene(stack), Load(stack.port, key, options.pause_s)
        try:
            scene.compose("build")
            scene.compose("up", "--detach")
            started_s = scene.all_in()
            threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(options.clients)]
            for thread in threads:
                thread.start()
            try:
                times = play(scene, load, options.requests)
            finally:
                load.stopped = True
                for thread in threads:
                    thread.join()
        except (AssertionError, TimeoutError, subprocess.SubprocessError):
            print(stack.log(), file=sys.stderr)
            raise
        finally:
            stack.down()
    result: dict[str, Any] = {
        "machine": machine,
        "requests": sum(load.outcomes.values()),
        "all replicas in rotation after": started_s,
        "seconds": times,
        "outcomes": {f"{event}: {what}": count for (event, what), count in sorted(load.outcomes.items())},
        "longest request, s": load.longest_s,
        "wrong": judge(load),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
