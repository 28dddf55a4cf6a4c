"""A Compose project, as the installed Compose resolves it, checked before the first `docker compose up`."""

import json
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from servekit.file_trouble import find_trouble
from servekit.preflight.docker.gpu_requests import check_gpu_requests, check_shared_gpus, gpu_requests
from servekit.preflight.docker.mounted_files import check_mounted_files
from servekit.preflight.findings import Finding, error, line_of, located, warning
from servekit.preflight.memory.gpu_models import gib
from servekit.preflight.memory.placement import HOST_BYTES
from servekit.settings import Embeddings

COMPOSE_FILES: Final = tuple(map(Path, ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")))
"""What Compose reads without --file, the first of them that exists."""
STOP_GRACE: Final = "10s"
"""Docker's default time between SIGTERM and SIGKILL."""
_NO_COMPOSE: Final = {
    "message": "Docker Compose is not installed",
    "remedy": "install the plugin docker-compose-plugin or docker-compose-v2",
}
_NO_CLI: Final = {
    "message": "no program `docker` on the PATH",
    "remedy": "install Docker's CLI: docker-ce-cli, docker-cli or docker.io",
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_CADDYS: Final = {"SERVEKIT_DOMAIN", "SERVEKIT_UPSTREAM"}
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def compose_version() -> str:
    """Return the version of the Compose plugin; empty without the plugin."""
    try:
        return str(json.loads(_run("version", "--format", "json"))["version"]).removeprefix("v")
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return ""


def read_project(
    files: Sequence[Path] = (), env_file: Path | None = None
) -> tuple[dict[str, Any] | None, tuple[Finding, ...]]:
    """Let Compose resolve the project of this folder, or of `files`; None and the reason if it cannot."""
    if not compose_version():
        return None, (error("docker-compose", **(_NO_COMPOSE if shutil.which("docker") else _NO_CLI)),)
    named = [*(files or COMPOSE_FILES), env_file or Path(".env")]
    if denied := [(path, why) for path in named if (why := find_trouble(path))]:
        return None, tuple(error("docker-compose", file=str(path), **why) for path, why in denied)
    options = [*(f"--file={path}" for path in files), *([f"--env-file={env_file}"] if env_file else [])]
    try:
        return dict(json.loads(_run(*options, "config", "--format", "json"))), ()
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as problem:
        said = str(problem.stderr if isinstance(problem, subprocess.CalledProcessError) else problem)
    reason = "; ".join(line for line in said.strip().splitlines() if "level=warning" not in line)
    nowhere = "run it in the folder of compose.yaml, or name the files with --file"
    remedy = nowhere if "no configuration file" in reason else "correct the file"
    return None, (error("docker-compose", f"Compose cannot read the project: {reason}", remedy=remedy),)


def check_project(
    project: Mapping[str, Any],
    *,
    compose: tuple[int, ...],
    drain_s: int,
    margin_s: int,
    files: Iterable[Path] = (),
    host_gpus: int | None = None,
    large_gpus: bool = False,
    cpu_images: Collection[str] = (),
) -> list[Finding]:
    """Check the services of servekit in a resolved project.

    `drain_s` is the default drain time, `margin_s` what servekit adds to it before it kills, `files` the Compose files,
    `host_gpus` the number of GPUs of this host (None: unknown), `cpu_images` the images that are built for the CPU.
    With `large_gpus` the per-layer embeddings stay on the GPU by default.
    """
    every = project.get("services", {})
    services = {name: service for name, service in every.items() if _is_servekit(service.get("environment"))}
    findings: list[tuple[str, str, Finding]] = []
    for name, service in services.items():
        drain = str((service.get("environment") or {}).get("SERVEKIT_DRAIN_S") or drain_s)
        found = [*_check_grace(service, drain, margin_s), *check_mounted_files(service, project.get("secrets", {}))]
        if not _is_for_cpu(service, cpu_images):
            found += check_gpu_requests(service, compose=compose, host_gpus=host_gpus)
            found += _check_memory(service, large_gpus=large_gpus)
        findings += ((name, key, each) for key, each in found)
    findings += check_shared_gpus(services)
    keyed = [replace(each, key=f"services.{name}.{key}") for name, key, each in findings]
    return [next((located(each, path) for path in files if line_of(path, each.key)), each) for each in keyed]


def images_of(project: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the images the project starts, without those of profiles that are not enabled."""
    services = project.get("services", {}).values()
    return tuple(dict.fromkeys(str(service["image"]) for service in services if service.get("image")))


def reserves_gpu(project: Mapping[str, Any]) -> bool:
    """Whether a service gets a GPU."""
    return any(gpu_requests(service) for service in project.get("services", {}).values())


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration as Compose writes it, such as `1m20s`."""
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(duration))


def _is_servekit(environment: Mapping[str, Any] | None) -> bool:
    return any(name.startswith("SERVEKIT_") for name in set(environment or ()) - _CADDYS)


def _is_for_cpu(service: Mapping[str, Any], cpu_images: Collection[str]) -> bool:
    image, environment = str(service.get("image", "")), service.get("environment") or {}
    built_for = ((service.get("build") or {}).get("args") or {}).get("ENGINE")
    return "cpu" in {environment.get("SERVEKIT_TARGET"), built_for, image.rpartition("-")[2]} or image in cpu_images


def _check_grace(service: Mapping[str, Any], drain: str, margin_s: int) -> Iterator[tuple[str, Finding]]:
    grace_s = seconds_of(str(service.get("stop_grace_period") or STOP_GRACE))
    if not drain.isdecimal():
        message = f"is {drain!r}, not a number of seconds"
        remedy = "write it without a unit, such as SERVEKIT_DRAIN_S=60"
        yield "environment.SERVEKIT_DRAIN_S", error("compose-grace", message, remedy=remedy)
    elif grace_s <= int(drain) + margin_s:
        message = f"is {grace_s:g} s, but servekit may need {drain} + {margin_s} s: Docker would kill it"
        remedy = f"set it (ENDPOINT_STOP_GRACE in .env) to {int(drain) + 2 * margin_s}s, or lower SERVEKIT_DRAIN_S"
        yield "stop_grace_period", error("compose-grace", message, remedy=remedy)


def _check_memory(service: Mapping[str, Any], *, large_gpus: bool) -> Iterator[tuple[str, Finding]]:
    limits = ((service.get("deploy") or {}).get("resources") or {}).get("limits") or {}
    key = "mem_limit" if service.get("mem_limit") else "deploy.resources.limits.memory"
    limit = int(service.get("mem_limit") or limits.get("memory") or 0)
    setting = (service.get("environment") or {}).get("SERVEKIT_EMBEDDINGS") or Embeddings.AUTO
    on_gpu = setting == Embeddings.GPU or (setting == Embeddings.AUTO and large_gpus)
    if not on_gpu and 0 < limit < HOST_BYTES:
        report = error if setting == Embeddings.HOST else warning
        message = f"is {gib(limit, 2)}: per-layer embeddings in the host's memory need {gib(HOST_BYTES, 2)}"
        remedy = "raise it (ENDPOINT_MEMORY in .env), or set SERVEKIT_EMBEDDINGS=gpu for a smaller KV cache"
        yield key, report("compose-memory", message, remedy=remedy)


def _run(*arguments: str) -> str:
    program = shutil.which("docker")
    if program is None:
        raise FileNotFoundError("no program `docker` on the PATH")
    answer = subprocess.run([program, "compose", *arguments], capture_output=True, timeout=15, check=True, text=True)
    return answer.stdout
