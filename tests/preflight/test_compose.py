"""The Compose project as the doctor reads it: resolved by the real Compose, or given as values."""

import os
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.docker.compose import (
    check_project,
    compose_version,
    images_of,
    read_project,
    reserves_gpu,
    seconds_of,
)

DEVICE = {"driver": "nvidia", "capabilities": ["gpu"]}
SERVICE: dict[str, Any] = {"image": "x:1", "environment": {"SERVEKIT_DRAIN_S": None}, "stop_grace_period": "1m20s"}

needs_compose = pytest.mark.skipif(not compose_version(), reason="no Docker Compose here")


def found(secret: Path | None = None, **changes: Any) -> list[str]:
    """Return the findings for an altered service, with an older Compose."""
    project = {"services": {"servekit": SERVICE | changes}, "secrets": {"keys": {"file": str(secret or os.devnull)}}}
    return [f.name for f in check_project(project, compose=(2, 26), drain_s=60, margin_s=10)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"stop_grace_period": "1m11s"}, []),
        ({"stop_grace_period": "1m10s"}, ["compose-grace"]),
        ({"stop_grace_period": None}, ["compose-grace"]),
        ({"environment": {"SERVEKIT_DRAIN_S": "100"}}, ["compose-grace"]),
        ({"environment": {"SERVEKIT_DRAIN_S": "100s"}}, ["compose-grace"]),
        ({"environment": {"SERVEKIT_DOMAIN": "x"}, "stop_grace_period": None}, []),
        ({"gpus": [{"count": -1}]}, ["compose-gpus"]),
        ({"volumes": [{"type": "bind", "source": "/nothing/here", "target": "/x"}]}, ["compose-mount"]),
        ({"volumes": [{"type": "volume", "source": "models", "target": "/models"}]}, []),
    ],
)
def test_each_trap_is_found(changes: dict[str, Any], expected: list[str]) -> None:
    """Too short a grace period, an ignored `gpus`, and mounts of missing paths each have a finding."""
    assert found(**changes) == expected


@pytest.mark.parametrize(
    ("mode", "user", "expected"),
    [
        (0o600, f"{os.getuid()}:0", []),
        (0o440, f"{os.getuid()}:0", []),
        (0o644, f"{os.getuid()}:0", ["compose-secret"]),
        (0o600, "10001:4711", ["compose-secret"]),
        (0o440, "10001:4711", ["compose-secret"]),
    ],
)
def test_key_file_the_container_cannot_use(tmp_path: Path, mode: int, user: str, expected: list[str]) -> None:
    """A key file must be readable by the container's user only."""
    keys = tmp_path / "keys"
    keys.write_text("k" * 20)
    keys.chmod(mode)
    assert found(keys, secrets=[{"source": "keys"}], user=user) == expected


def test_missing_key_file(tmp_path: Path) -> None:
    """A missing key file is a finding, unless none is configured."""
    assert found(tmp_path / "none", secrets=[{"source": "keys"}]) == ["compose-secret"]
    assert found(None, secrets=[{"source": "keys"}]) == []


def test_finding_has_the_line_of_its_key(tmp_path: Path) -> None:
    """A finding names the first Compose file with the service, and the line of the key or of the service."""
    other, path = tmp_path / "other.yaml", tmp_path / "compose.yaml"
    other.write_text("services:\n  caddy: {}\n")
    path.write_text("services:\n  servekit:\n    image: x\n    stop_grace_period: 1s\n")
    project = {"services": {"servekit": SERVICE | {"stop_grace_period": "1s"}}}
    (finding,) = check_project(project, compose=(2, 30), drain_s=60, margin_s=10, files=[path, other])
    assert str(finding).startswith(f"{path}:4: error: services.servekit.stop_grace_period: is 1 s")


def test_gpu_and_images() -> None:
    """A reservation or `gpus` requests a GPU; each image is listed once."""
    reserved = {"services": {"a": {"deploy": {"resources": {"reservations": {"devices": [DEVICE]}}}}}}
    assert reserves_gpu(reserved)
    assert reserves_gpu({"services": {"a": {"gpus": [{"count": -1}]}}})
    assert not reserves_gpu({"services": {"a": {"deploy": None}}})
    assert images_of({"services": {"a": SERVICE, "b": SERVICE, "c": {"build": "."}}}) == ("x:1",)


@pytest.mark.parametrize(("text", "seconds"), [("1m20s", 80), ("10s", 10), ("1h0m1s", 3601), ("500ms", 0.5)])
def test_durations(text: str, seconds: float) -> None:
    """Durations are parsed as Compose writes them."""
    assert seconds_of(text) == seconds


@needs_compose
def test_own_project_is_right(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped files, resolved by the real Compose, have no findings; they request a GPU except for the CPU."""
    monkeypatch.chdir(root)
    for files, gpu in (((), True), (("compose.yaml", "compose.cpu.yaml"), False)):
        project, findings = read_project([Path(name) for name in files])
        assert project is not None, findings
        assert check_project(project, compose=(2, 26), drain_s=60, margin_s=10) == []
        assert reserves_gpu(project) is gpu


@needs_compose
def test_what_compose_refuses_is_a_finding(tmp_path: Path) -> None:
    """A file that Compose rejects gives a finding with Compose's message."""
    path = tmp_path / "compose.yaml"
    path.write_text("services: 3\n")
    project, (finding,) = read_project([path])
    assert project is None
    assert "services" in finding.message
