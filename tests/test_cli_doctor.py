"""`servekit doctor` as an operator runs it: on hosts that lack something, and on this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("servekit")


def doctor(*options: str, cwd: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run `servekit doctor` to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERVEKIT_", "ENDPOINT_"))}
    return subprocess.run(
        [PROGRAM, "doctor", *options], cwd=cwd, env=clean | environ, capture_output=True, text=True, check=False
    )


def test_host_without_docker(root: Path, tmp_path: Path) -> None:
    """A missing Docker and a missing Compose are reported together, each with a remedy, and the exit code is 3."""
    done = doctor(cwd=root, PATH=str(tmp_path), DOCKER_HOST=f"unix://{tmp_path}/docker.sock")
    assert done.returncode == 3
    assert "[docker-unreachable]" in done.stdout
    assert "error: Compose cannot read the project: no program `docker` on the PATH" in done.stdout
    assert "; start it" in done.stdout
    assert not done.stderr


def test_json_for_programs(root: Path, tmp_path: Path) -> None:
    """In JSON every finding has its name, its severity and its remedy."""
    done = doctor("--format", "json", cwd=root, DOCKER_HOST=f"unix://{tmp_path}/docker.sock")
    found = json.loads(done.stdout)
    assert found["docker"] is None
    assert found["failed"]
    assert {"name", "severity", "message", "remedy", "subject", "file", "line", "key", "got"} == set(
        found["findings"][0]
    )


def test_project_without_a_gpu_asks_for_none(root: Path, tmp_path: Path) -> None:
    """With the override for the CPU no driver or NVIDIA runtime is required; without Docker, the test is skipped."""
    done = doctor("-f", "compose.yaml", "-f", "compose.cpu.yaml", "--env-file", str(_env(tmp_path)), cwd=root)
    if "docker-unreachable" in done.stdout or "docker-compose" in done.stdout:
        pytest.skip(f"no Docker here: {done.stdout.splitlines()[0]}")
    assert "gpu" not in done.stdout
    assert ": error: services.servekit.stop_grace_period: is 80 s, but servekit may need 100 + 10 s" in done.stdout
    assert done.returncode == 3


def _env(folder: Path) -> Path:
    path = folder / "tenant.env"
    path.write_text("SERVEKIT_DRAIN_S=100\n")
    return path
