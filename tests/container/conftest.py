"""The real Docker Engine, the image built as the README describes, and one tenant that most tests share."""

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from servekit.preflight.docker.doctor import inspect_docker
from tests.conftest import ROOT
from tests.container.stack import Stack

IMAGE = "servekit-test:cpu"
SUBSTITUTES = ("CPU_BASE_IMAGE", "PROMETHEUS_IMAGE", "CADDY_IMAGE")
"""Variables of the Compose files that name another image on a machine without a registry."""
REQUIRED = os.environ.get("CONTAINER_TESTS") == "required"
"""Whether these tests are required here: if so, a missing part is a failure, not a skip."""


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    """The Docker Engine; without one, the tests are skipped, or fail where it is required."""
    facts, findings = inspect_docker()
    if facts is None or not facts.compose:
        reason = findings[0].message if findings else "the Compose plugin is not installed"
        if REQUIRED:
            pytest.fail(f"container tests are required here: {reason}")
        pytest.skip(f"no Docker to test with: {reason}")
    made = docker.from_env(timeout=120)
    yield made
    made.close()


@pytest.fixture(scope="session")
def image(client: docker.DockerClient) -> str:
    """The image for the CPU, built by Docker from the Dockerfile."""
    build_image(IMAGE, "servekit")
    assert client.images.get(IMAGE)
    return IMAGE


def build_image(tag: str, stage: str, **arguments: str) -> None:
    """Build one stage of the Dockerfile, for the CPU engine unless the build arguments say otherwise."""
    given = {"ENGINE": "cpu", **arguments}
    if base := os.environ.get("CPU_BASE_IMAGE"):
        given["CPU_BASE_IMAGE"] = base
    options = [f"--build-arg={name}={value}" for name, value in given.items()]
    command = ["docker", "build", "--quiet", *options, "--target", stage, "--tag", tag, str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "failed to resolve source metadata" in built.stderr and not REQUIRED:
        pytest.skip(f"no base image to build on: {built.stderr.splitlines()[-1]}")
    assert built.returncode == 0, built.stderr


@pytest.fixture(scope="package")
def make_stack(
    client: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Stack]]:
    """Create tenants; afterwards remove them with all their volumes and networks."""
    folder = tmp_path_factory.mktemp("stacks")
    made: list[Stack] = []

    def make(name: str, **options: str | tuple[str, ...]) -> Stack:
        substitutes = {key: os.environ[key] for key in SUBSTITUTES if key in os.environ}
        unique = f"servekit-test-{name}-{secrets.token_hex(3)}"
        stack = Stack(unique, folder, client=client, **{"ENDPOINT_IMAGE": image, **substitutes, **options})  # type: ignore[arg-type]
        made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.down()


@pytest.fixture(scope="package")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key file with the owner and mode that docs/container.md gives: this user's, or root's with group 0."""
    path = tmp_path_factory.mktemp("keys") / "api_keys"
    path.write_text(f"# the first tenant\nsk-test-{secrets.token_hex(16)}\n")
    path.chmod(0o440)
    return path


@pytest.fixture(scope="package")
def stack(make_stack: Callable[..., Stack], key_file: Path) -> Stack:
    """The first tenant: healthy, with a key file, a short hang time and a short drain time."""
    user = f"{os.getuid()}:0" if os.getuid() else "10001:0"
    made = make_stack(
        "a",
        SERVEKIT_API_KEYS_FILE=str(key_file),
        SERVEKIT_HANG_S="20",
        SERVEKIT_DRAIN_S="40",
        ENDPOINT_STOP_GRACE="60s",
        ENDPOINT_USER=user,
        ENDPOINT_MEMORY="8g",
    )
    made.compose("up", "--detach")
    made.first_health = made.health
    made.until_health("healthy")
    return made


@pytest.fixture
def healthy(stack: Stack) -> Stack:
    """The first tenant, healthy again after whatever the previous test did to it."""
    stack.until_health("healthy")
    return stack


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Record a figure for the table at the end of the run."""
    return lambda text: record_property("container", text)
