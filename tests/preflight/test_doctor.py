"""The doctor: Docker's answers judged, Compose files read, and the real engine asked where it runs."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.doctor import DockerFacts, check_compose_file, check_docker, inspect_docker

GOOD = DockerFacts(
    engine="28.5.1", compose="2.40.0", architecture="x86_64", runtimes=("runc", "nvidia"), images={"a:1": "linux/amd64"}
)
CDI = DockerFacts(engine="28.5.1", compose="2.40.0", architecture="x86_64", cdi_devices=("nvidia.com/gpu=all",))


def names(**changes: Any) -> list[str]:
    """What is found of altered facts, for target cuda."""
    facts = DockerFacts(**{**vars(GOOD), **changes})
    return [finding.name for finding in check_docker(facts, "cuda")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"engine": "24.0.9"}, ["docker-engine"]),
        ({"engine": "26.1.5+dfsg1"}, []),
        ({"compose": ""}, ["docker-compose"]),
        ({"compose": "2.20.1"}, ["docker-compose"]),
        ({"compose": "2.26.1-4"}, []),
        ({"runtimes": ("runc",)}, ["docker-gpu"]),
        ({"images": {"a:1": ""}}, ["docker-image"]),
        ({"images": {"a:1": "linux/arm64"}}, ["docker-platform"]),
        ({"architecture": "aarch64"}, ["docker-platform"]),
    ],
)
def test_each_lack_is_found(changes: dict[str, Any], expected: list[str]) -> None:
    """Old versions, no GPU support, absent and foreign images each have a finding."""
    assert names(**changes) == expected


def test_cdi_stands_in_for_the_runtime() -> None:
    """Devices by CDI are as good as the NVIDIA runtime."""
    assert check_docker(CDI, "cuda") == ()


def test_cpu_target_needs_no_runtime() -> None:
    """On target cpu the missing runtime is a note with the trap it holds."""
    (finding,) = check_docker(DockerFacts("28.5.1", "2.40.0", "x86_64"), "cpu")
    assert str(finding.severity) == "note"
    assert "!reset" in finding.message


COMPOSE = """
services:
  endpoint:
    build: .
    gpus: all
    deploy: !reset null
  helper:
    image: x
    init: true
"""


def test_compose_traps_are_found(tmp_path: Path) -> None:
    """`gpus` is ignored by older Compose, and a service that is built wants an init."""
    path = tmp_path / "compose.yaml"
    path.write_text(COMPOSE)
    assert [finding.name for finding in check_compose_file(path, "2.26.1-4")] == ["compose-gpus", "compose-init"]
    assert [finding.name for finding in check_compose_file(path, "2.40.0")] == ["compose-init"]


@pytest.mark.parametrize("content", ["", "services: 3", "a: [", "services:\n  a: b\n  c: [1"])
def test_broken_compose_files_are_findings(tmp_path: Path, content: str) -> None:
    """A Compose file that is none is a finding, no traceback."""
    path = tmp_path / "compose.yaml"
    path.write_text(content)
    assert [finding.name for finding in check_compose_file(path, "2.40.0")] == ["docker-compose"]


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
    assert "servekit[doctor]" in finding.remedy


def test_dead_engine_is_a_finding(free_port: int) -> None:
    """An engine that does not answer is a finding."""
    pytest.importorskip("docker")
    facts, (finding,) = inspect_docker(base_url=f"tcp://127.0.0.1:{free_port}")
    assert (facts, finding.name) == (None, "docker-unreachable")


def test_real_engine_is_understood() -> None:
    """A running Docker Engine gives its versions, its architecture and which images it lacks."""
    pytest.importorskip("docker")
    facts, findings = inspect_docker(("servekit-no-such-image:1",))
    if facts is None:
        pytest.skip(f"no Docker Engine: {findings[0].message}")
    assert facts.engine
    assert facts.runtimes
    assert facts.images == {"servekit-no-such-image:1": ""}
    assert "docker-image" in [finding.name for finding in check_docker(facts, "cpu")]
