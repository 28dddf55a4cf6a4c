"""`servekit doctor` as an operator runs it: on hosts that lack something, and on this one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from servekit.preflight.docker.compose import compose_version
from tests.test_permissions import take_away, unprivileged

PROGRAM = Path(sys.executable).with_name("servekit")


def doctor(*options: str, cwd: Path, prefix: Sequence[str] = (), **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run `servekit doctor` to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERVEKIT_", "ENDPOINT_"))}
    return subprocess.run(
        [*prefix, PROGRAM, "doctor", *options],
        cwd=cwd,
        env=clean | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_host_without_docker(root: Path, tmp_path: Path) -> None:
    """A missing Docker and a missing Compose are reported together, each with a remedy, and the exit code is 3."""
    done = doctor(cwd=root, PATH=str(tmp_path), DOCKER_HOST=f"unix://{tmp_path}/docker.sock")
    assert done.returncode == 3
    assert "[docker-unreachable]" in done.stdout
    assert "error: no program `docker` on the PATH; install Docker's CLI: docker-ce-cli, " in done.stdout
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


def test_compose_that_is_not_installed(root: Path, tmp_path: Path) -> None:
    """Docker without its Compose plugin, which answers `unknown flag: --format`, is reported as such, once."""
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'unknown flag: --format' >&2\nexit 125\n")
    docker.chmod(0o755)
    done = doctor(cwd=root, PATH=str(tmp_path))
    assert done.returncode == 3
    assert done.stdout.count("[docker-compose]") == 1
    assert "error: Docker Compose is not installed; install the plugin docker-compose-plugin" in done.stdout
    assert "unknown flag" not in done.stdout


NVIDIA = "driver: nvidia, capabilities: [gpu]"
RESERVED = "deploy: {resources: {reservations: {devices: [{%s}]}}}"
ONE = RESERVED % f"device_ids: ['0'], {NVIDIA}"
DRIVER = "error: no NVIDIA driver answers"


@pytest.mark.skipif(not compose_version(), reason="no Docker Compose here")
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["environment: {SERVEKIT_MODEL: /models/m}"], ["error: services.servekit.deploy: reserves no GPU"]),
        (
            [RESERVED % f"count: all, {NVIDIA}"],
            [DRIVER, "warning: services.servekit.deploy.resources.reserv"],
        ),
        ([RESERVED % "driver: nvidia, capabilities: [compute, utility]"], [DRIVER, "asks for every GPU"]),
        (["runtime: nvidia"], [DRIVER, "warning: services.servekit.runtime: asks for every GPU"]),
        (["gpus: all"], [DRIVER, "services.servekit.gpus: "]),
        (["environment: {SERVEKIT_MODEL: /srv/other}", ONE], ["MODEL: nothing is mounted at /srv/other"]),
        (["volumes: ['./closed:/models/m:ro']", ONE], ["warning: services.servekit.volumes: user 10001:0 of the con"]),
        (["stop_grace_period: 1m10s", ONE], ["error: services.servekit.stop_grace_period: is 70 s"]),
        (["ports: ['8000:8000', '9400:9400']", "shm_size: 64mb", ONE], [DRIVER]),
    ],
)
def test_projects_of_others(tmp_path: Path, lines: list[str], told: list[str]) -> None:
    """A Compose file that somebody wrote is answered with its own mistake, and a good one with none."""
    defaults = {
        "image": "image: servekit:0.1.0",
        "environment": "environment: {SERVEKIT_MODEL: /models/m}",
        "stop_grace_period": "stop_grace_period: 80s",
        "volumes": "volumes: ['./model:/models/m:ro']",
    }
    (tmp_path / "model").mkdir(mode=0o755)
    (tmp_path / "closed").mkdir(mode=0o700)
    service = (defaults | {line.partition(":")[0]: line for line in lines}).values()
    (tmp_path / "compose.yaml").write_text("services:\n  servekit:\n" + "".join(f"    {line}\n" for line in service))
    done = doctor(cwd=tmp_path, DOCKER_HOST=f"unix://{tmp_path}/docker.sock")
    assert done.returncode == 3
    for part in told:
        assert part in done.stdout
    own = [line for line in done.stdout.splitlines() if line.startswith("compose.yaml:")]
    if lines != ["gpus: all"]:  # with a Compose that ignores the key, there is one more
        assert len(own) == len(told) - (DRIVER in told), done.stdout


@pytest.mark.skipif(not compose_version(), reason="no Docker Compose here")
@pytest.mark.parametrize("name", ["compose.yaml", ".env"])
def test_files_of_another_user(tmp_path: Path, name: str) -> None:
    """A project that this user cannot read has its own reason and command, not Compose's message about YAML."""
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    (tmp_path / ".env").touch()
    take_away(tmp_path / name, 0o600)
    done = doctor(cwd=tmp_path, prefix=unprivileged())
    assert done.returncode == 3
    assert f"{name}: error: permission denied for user {os.geteuid()}" in done.stdout
    assert "run: " in done.stdout
    assert "Compose cannot read" not in done.stdout
    done = doctor("-f", "compose.yaml/x", cwd=tmp_path)
    assert f"{tmp_path}/compose.yaml is not a folder; correct the path" in done.stdout


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
