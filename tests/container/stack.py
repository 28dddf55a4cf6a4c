"""A Compose project of this repository's own files, run by the real Compose and inspected through the Docker SDK."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import httpx
import openai
from docker.models.containers import Container

from tests.conftest import ROOT, find_free_port, wait_until

CPU_FILES = ("compose.yaml", "compose.cpu.yaml", "tests/container/quick.yaml")
START_S = 300
"""Longest time for a start here: two cores, and the engine's bytecode is compiled on the way."""


class Stack:
    """One tenant: its project, its environment file, its container."""

    def __init__(
        self, name: str, folder: Path, files: tuple[str, ...] = CPU_FILES, *, client: docker.DockerClient, **env: str
    ) -> None:
        self.name, self.files, self.docker = name, files, client
        self.first_health = ""
        self.port, self.observe_port, self.prometheus_port = (find_free_port() for _ in range(3))
        self.url, self.observe_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.observe_port}"
        self.env_file = folder / f"{name}.env"
        ports = {"SERVEKIT_PORT": self.port, "SERVEKIT_OBSERVE_PORT": self.observe_port}
        values = {**ports, "PROMETHEUS_PORT": self.prometheus_port, **env}
        self.env_file.write_text("".join(f"{key}={value}\n" for key, value in values.items()))

    def compose(self, *arguments: str, within_s: float = START_S, check: bool = True) -> str:
        """Run Compose as a user does; return its output."""
        files = [f"--file={name}" for name in self.files]
        command = ["compose", "-p", self.name, f"--env-file={self.env_file}", *files, *arguments]
        code, output = _docker(*command, within_s=within_s)
        if check and code:
            raise AssertionError(f"docker {' '.join(command)}: {code}\n{output}\n{self.log()}")
        return output

    @property
    def container(self) -> Container:
        """The endpoint's container, in its current state."""
        return self.containers("servekit")[0]

    def containers(self, service: str = "") -> list[Container]:
        """The containers of one service, or of all; stopped containers are included."""
        labels = {"project": self.name, "service": service}
        named = [f"com.docker.compose.{key}={value}" for key, value in labels.items() if value]
        return self.docker.containers.list(all=True, filters={"label": named})

    @property
    def health(self) -> str:
        """Docker's health status of the container: starting, healthy or unhealthy."""
        return str(self.container.attrs["State"].get("Health", {}).get("Status"))

    def until_health(self, status: str, within_s: float = START_S) -> None:
        """Wait until Docker reports this health status; on a timeout, fail with the container's log."""
        end = time.monotonic() + within_s
        while self.health != status:
            if time.monotonic() > end:
                raise AssertionError(f"not {status} within {within_s} s, but {self.health}:\n{self.log()}")
            time.sleep(0.2)

    def log(self, lines: int = 60) -> str:
        """Return the end of the container's log."""
        return "\n".join(each.logs(tail=lines).decode(errors="replace") for each in self.containers())

    def run(self, *command: str) -> tuple[int, str]:
        """Run a program inside the container; return its exit code and output.

        Uses Docker's own client: the SDK loses output that arrives before it has read the response headers
        (docker/docker-py#2042; 21 of 141 calls beside four busy threads).
        """
        return _docker("exec", str(self.container.id), *command, within_s=START_S)

    def python(self, program: str) -> str:
        """Run a Python program inside the container with the engine's interpreter; return its output."""
        code, output = self.run("python3", "-c", program)
        assert code == 0, output
        return output.strip()

    def process(self, part: str) -> int:
        """Return the process inside the container whose command line contains `part`."""
        found = self.python(_FIND_PROCESS.format(part=part))
        assert found, f"no process with {part!r}"
        return int(found.split()[0])

    def kill(self, part: str, signal: str) -> None:
        """Send a signal to the process inside the container whose command line contains `part`."""
        code, output = self.run("bash", "-c", f"kill -{signal} {self.process(part)}")
        assert code == 0, output

    def key(self) -> str:
        """Return the key that servekit generated, or the first of the key file, the way an operator reads it."""
        code, output = self.run("servekit", "key", "--show")
        assert code == 0, output
        return output.strip()

    def openai(self, key: str | None = None) -> openai.OpenAI:
        """Return OpenAI's own client, with this tenant's key unless another is given."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key(), max_retries=0, timeout=60)

    def ready_after_s(self) -> float:
        """Return how long the last start took, as servekit reports it."""
        status: dict[str, Any] = httpx.get(f"{self.observe_url}/status").json()
        return float(status["start_seconds"])

    @contextmanager
    def ends(self) -> Iterator[list[dict[str, str]]]:
        """Collect each exit of this container during the block: exit code and time, as Docker reports them."""
        seen: list[dict[str, str]] = []
        since, ident = time.time(), self.container.id
        yield seen
        wait_until(self.docker.api.ping, within_s=60, what="the daemon")
        until = time.time() + 1
        events = self.docker.events(since=int(since), until=int(until), filters={"container": ident}, decode=True)
        seen += [event["Actor"]["Attributes"] for event in events if event.get("Action") == "die"]

    def down(self) -> None:
        """Remove everything, volumes included."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "20", check=False)


def _docker(*arguments: str, within_s: float) -> tuple[int, str]:
    """Run Docker's client without the tests' own variables; return its exit code and output."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    command = ["docker", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=within_s,
        check=False,
    )
    return done.returncode, done.stdout


_FIND_PROCESS = """
import pathlib
for entry in pathlib.Path("/proc").iterdir():
    if entry.name.isdigit():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if {part!r} in line and "pathlib" not in line:
            print(entry.name)
"""
