"""A Compose project as the installed Compose resolves it, judged before the first `up`."""

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from servekit.preflight.findings import Finding, error, in_order

GPUS_KEY_SINCE: Final = (2, 30)
"""The first Compose that acts on a service's `gpus`; before, 2.26 reads it without a word."""
STOP_GRACE_S: Final = 10.0
"""What Docker gives a container between SIGTERM and SIGKILL unless told otherwise."""
DEFAULT_USER: Final = "10001:0"
"""The user of the image."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def compose_version() -> str:
    """Ask for the version of the Compose plugin, empty when there is none."""
    try:
        answer = _run("version", "--format", "json")
        return str(json.loads(answer)["version"]).removeprefix("v")
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return ""


def read_project(
    files: Sequence[Path] = (), env_file: Path | None = None
) -> tuple[dict[str, Any] | None, tuple[Finding, ...]]:
    """Let Compose resolve the project of this folder, or of `files`; None with the reason when it cannot."""
    options = [*(f"--file={path}" for path in files), *([f"--env-file={env_file}"] if env_file else [])]
    try:
        project = json.loads(_run(*options, "config", "--format", "json"))
        return (project, ()) if isinstance(project, dict) else (None, (_unreadable("no mapping"),))
    except subprocess.CalledProcessError as problem:
        return None, (_unreadable(str(problem.stderr).strip()),)
    except (OSError, subprocess.SubprocessError, ValueError) as problem:
        return None, (_unreadable(str(problem)),)


def check_project(
    project: Mapping[str, Any], *, compose: tuple[int, int], drain_s: int, margin_s: int
) -> tuple[Finding, ...]:
    """Judge the services of servekit in a resolved project.

    `drain_s` is the default drain time, `margin_s` what servekit adds to it before it kills.
    """
    findings: list[Finding] = []
    for name, service in project.get("services", {}).items():
        environment = service.get("environment") or {}
        if service.get("gpus") and compose < GPUS_KEY_SINCE:
            findings.append(_ignored_gpus(name, compose))
        if not any(variable.startswith("SERVEKIT_") and variable != "SERVEKIT_DOMAIN" for variable in environment):
            continue
        findings += _check_grace(name, service, str(environment.get("SERVEKIT_DRAIN_S") or drain_s), margin_s)
        findings += _check_mounts(name, service)
        findings += _check_secrets(name, service, project.get("secrets", {}))
    return in_order(findings)


def images_of(project: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the images the project starts, without those of profiles that are not asked for."""
    services = project.get("services", {}).values()
    return tuple(dict.fromkeys(str(service["image"]) for service in services if service.get("image")))


def reserves_gpu(project: Mapping[str, Any]) -> bool:
    """Whether a service asks for a GPU."""
    for service in project.get("services", {}).values():
        resources = (service.get("deploy") or {}).get("resources") or {}
        devices = (resources.get("reservations") or {}).get("devices") or ()
        if service.get("gpus") or any("gpu" in (device.get("capabilities") or ()) for device in devices):
            return True
    return False


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration as Compose writes it, such as `1m20s`."""
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(duration))


def _check_grace(name: str, service: Mapping[str, Any], drain: str, margin_s: int) -> Iterator[Finding]:
    if not drain.isdecimal():
        remedy = "write it without a unit, such as SERVEKIT_DRAIN_S=60"
        yield error(
            "compose-grace", f"SERVEKIT_DRAIN_S is {drain!r}, no number of seconds", subject=name, remedy=remedy
        )
        return
    drain_s = int(drain)
    grace = service.get("stop_grace_period")
    grace_s = seconds_of(str(grace)) if grace else STOP_GRACE_S
    if grace_s <= drain_s + margin_s:
        yield error(
            "compose-grace",
            f"stop_grace_period is {grace_s:g} s, servekit may take {drain_s} + {margin_s} s: Docker would kill it",
            subject=name,
            remedy=f"set ENDPOINT_STOP_GRACE to {drain_s + 2 * margin_s}s, or lower SERVEKIT_DRAIN_S",
        )


def _check_mounts(name: str, service: Mapping[str, Any]) -> Iterator[Finding]:
    for mount in service.get("volumes") or ():
        source = Path(str(mount.get("source", "")))
        if mount.get("type") == "bind" and not source.exists():
            yield error(
                "compose-mount",
                f"{source} does not exist, to be mounted on {mount.get('target')}",
                subject=name,
                remedy="correct the path in .env, or make it",
            )


def _check_secrets(name: str, service: Mapping[str, Any], secrets: Mapping[str, Any]) -> Iterator[Finding]:
    user, _, group = str(service.get("user") or DEFAULT_USER).partition(":")
    for used in service.get("secrets") or ():
        path = Path(str(secrets.get(used.get("source"), {}).get("file", os.devnull)))
        if path == Path(os.devnull):
            continue
        try:
            status = path.stat()
        except OSError as problem:
            yield _unusable_secret(name, path, problem.strerror or str(problem))
            continue
        if not _usable(status, user, group or "0"):
            mode = stat.S_IMODE(status.st_mode)
            message = f"owner {status.st_uid}:{status.st_gid}, mode {mode:04o}: user {user}:{group or 0} cannot use it"
            yield _unusable_secret(name, path, message)


def _usable(status: os.stat_result, user: str, group: str) -> bool:
    """Whether the guard would take the file: its owner's or root's, for this user to read and nobody else."""
    if status.st_mode & 0o027 or str(status.st_uid) not in {user, "0"}:
        return False
    return str(status.st_uid) == user or (str(status.st_gid) == group and bool(status.st_mode & 0o040))


def _unusable_secret(name: str, path: Path, message: str) -> Finding:
    remedy = f"sudo chown 0:0 {path} && sudo chmod 0440 {path}, or ENDPOINT_USER=$(id -u):0 for a file of your own"
    return error("compose-secret", message, subject=f"{name}: {path}", remedy=remedy)


def _ignored_gpus(name: str, compose: tuple[int, int]) -> Finding:
    return error(
        "compose-gpus",
        f"Compose {compose[0]}.{compose[1]} ignores `gpus`: the container starts without a GPU",
        subject=name,
        remedy="use deploy.resources.reservations.devices",
    )


def _unreadable(message: str) -> Finding:
    return error(
        "docker-compose",
        f"Compose cannot read the project: {message}",
        remedy="run it in the folder of compose.yaml, or name the files with --file",
    )


def _run(*arguments: str) -> str:
    program = shutil.which("docker")
    if program is None:
        raise FileNotFoundError("no program `docker` on the PATH")
    answer = subprocess.run([program, "compose", *arguments], capture_output=True, timeout=15, check=True, text=True)
    return answer.stdout
