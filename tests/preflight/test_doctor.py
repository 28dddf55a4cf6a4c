"""The doctor: its verdict on Docker's answers and the host's driver, and the real Docker Engine where one runs."""

import dataclasses
import gc
import importlib
import socket
from pathlib import Path
from typing import Any

import pytest

from servekit.nvml import GpuFacts, GpuSurvey
from servekit.preflight.docker.doctor import DockerFacts, check_docker, check_driver_of_host, inspect_docker
from servekit.preflight.memory.gpu_models import GIB

GOOD = DockerFacts(
    engine="28.5.1", compose="2.40.0", architecture="x86_64", runtimes=("runc", "nvidia"), images={"a:1": "linux/amd64"}
)
CDI = DockerFacts(engine="28.5.1", compose="2.40.0", architecture="x86_64", cdi_devices=("nvidia.com/gpu=all",))


def names(**changes: Any) -> list[str]:
    """Return the findings for altered facts, for a container with a GPU."""
    facts = DockerFacts(**{**vars(GOOD), **changes})
    return [finding.name for finding in check_docker(facts, gpu=True)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"engine": "26.1.5+dfsg1"}, []),
        ({"compose": ""}, []),
        ({"compose": "2.20.1"}, ["docker-compose"]),
        ({"compose": "2.26.1-4"}, []),
        ({"runtimes": ("runc",)}, ["docker-gpu"]),
        ({"images": {"a:1": ""}}, ["docker-image"]),
        ({"images": {"a:1": "linux/arm64"}}, ["docker-platform"]),
        ({"architecture": "aarch64"}, ["docker-platform"]),
    ],
)
def test_each_lack_is_found(changes: dict[str, Any], expected: list[str]) -> None:
    """Old versions, missing GPU support, and missing or wrong-platform images each have a finding.

    A missing Compose is reported where the project is read.
    """
    assert names(**changes) == expected


def test_cdi_stands_in_for_the_runtime() -> None:
    """CDI devices can replace the runtime, unless a service names it; a container without a GPU needs neither."""
    assert check_docker(CDI, gpu=True) == []
    assert check_docker(dataclasses.replace(CDI, cdi_devices=()), gpu=False) == []
    (finding,) = check_docker(CDI, gpu=True, runtime=True)
    assert "Docker has no runtime `nvidia`" in finding.message


def test_driver_of_the_host() -> None:
    """No driver, a driver without a GPU and one too old for CUDA 13 each have a finding."""
    gpu = GpuFacts(0, "GPU-1", "NVIDIA L4", 24 * GIB, 24 * GIB, (8, 9))
    assert check_driver_of_host(GpuSurvey("580.1", (13, 0), (gpu,))) == ()
    surveys = (None, GpuSurvey("580.1", (13, 0), ()), GpuSurvey("550.54", (12, 4), (gpu,)))
    names = [finding.name for survey in surveys for finding in check_driver_of_host(survey)]
    assert names == ["gpu-missing", "gpu-missing", "gpu-driver"]


def test_missing_sdk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the docker SDK the doctor names the extra."""
    original = importlib.import_module

    def without_docker(name: str, package: str | None = None) -> Any:
        if name == "docker":
            raise ImportError(name)
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", without_docker)
    facts, (finding,) = inspect_docker()
    assert facts is None
    assert "pip install '.[doctor]'" in finding.remedy


@pytest.mark.parametrize(("version", "expected"), [("24.0.9", ["docker-engine"]), ("25.0.0", [])])
def test_old_engine_is_a_finding(monkeypatch: pytest.MonkeyPatch, version: str, expected: list[str]) -> None:
    """An engine that lacks `start_interval` is a finding, and nothing else is read from it."""
    docker = pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    monkeypatch.setattr(docker.APIClient, "version", lambda *_, **__: {"Version": version})
    monkeypatch.setattr(docker.APIClient, "info", lambda _self: {})
    facts, findings = inspect_docker()
    assert (facts is None, [finding.name for finding in findings]) == (bool(expected), expected)


def test_dead_engine_is_a_finding(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    """An engine that does not answer is a finding."""
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port}")
    facts, (finding,) = inspect_docker()
    assert (facts, finding.name) == (None, "docker-unreachable")


def test_missing_socket_is_a_finding_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing socket is a finding; a socket left open would be a warning, hence a failure."""
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    facts, (finding,) = inspect_docker()
    gc.collect()
    assert (facts, finding.name) == (None, "docker-unreachable")
    assert "No such file" in finding.message
    assert finding.remedy == "start it, or set DOCKER_HOST"


def test_socket_of_another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who may not connect is told to join Docker's group, and not to start what runs."""
    pytest.importorskip("docker")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    _, (finding,) = inspect_docker()
    assert finding.remedy == "run: sudo usermod -aG docker $USER, and log in again"


def test_image_for_the_cpu_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is built for the CPU says so in its environment, and needs no GPU whatever its name is."""
    docker = pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    monkeypatch.setattr(docker.APIClient, "version", lambda *_, **__: {"Version": "28.0.0"})
    monkeypatch.setattr(docker.APIClient, "info", lambda _self: {})
    target = {"mine:1": "cpu", "mine:2": "cuda"}
    monkeypatch.setattr(
        docker.APIClient,
        "inspect_image",
        lambda _self, name: {
            "Os": "linux",
            "Architecture": "amd64",
            "Config": {"Env": [f"SERVEKIT_TARGET={target[name]}"]},
        },
    )
    facts, _ = inspect_docker(tuple(target))
    assert facts is not None
    assert facts.cpu_images == ("mine:1",)


def test_real_engine_is_understood() -> None:
    """A running Docker Engine reports its versions, its architecture and which images it lacks."""
    pytest.importorskip("docker")
    facts, findings = inspect_docker(("servekit-no-such-image:1",))
    if facts is None:
        pytest.skip(f"no Docker Engine: {findings[0].message}")
    assert facts.engine
    assert facts.runtimes
    assert facts.images == {"servekit-no-such-image:1": ""}
    assert "docker-image" in [finding.name for finding in check_docker(facts, gpu=False)]
