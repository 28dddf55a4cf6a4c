"""A Compose project, as the installed Compose resolves it, checked before the first `docker compose up`."""

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from servekit.preflight.findings import Finding, error, line_of, located

GPUS_KEY_SINCE: Final = (2, 30)
"""The first Compose that acts on a service's `gpus`; 2.26 reads the key and ignores it."""
STOP_GRACE: Final = "10s"
"""Docker's default time between SIGTERM and SIGKILL."""
DEFAULT_USER: Final = "10001:0"
"""The user of the image."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
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
    options = [*(f"--file={path}" for path in files), *([f"--env-file={env_file}"] if env_file else [])]
    try:
        return dict(json.loads(_run(*options, "config", "--format", "json"))), ()
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as problem:
        reason = str(problem.stderr if isinstance(problem, subprocess.CalledProcessError) else problem).strip()
    return None, (
        error(
            "docker-compose",
            f"Compose cannot read the project: {reason}",
            remedy="run it in the folder of compose.yaml, or name the files with --file",
        ),
    )


def check_project(
    project: Mapping[str, Any],
    *,
    compose: tuple[int, ...],
    drain_s: int,
    margin_s: int,
    files: Iterable[Path] = (),
) -> list[Finding]:
    """Check the services of servekit in a resolved project.

    `drain_s` is the default drain time, `margin_s` what servekit adds to it before it kills, `files` the Compose files.
    """
    findings: list[Finding] = []
    for name, service in project.get("services", {}).items():
        environment = service.get("environment") or {}
        if service.get("gpus") and compose < GPUS_KEY_SINCE:
            findings.append(
                _about(
                    (name, "gpus"),
                    "compose-gpus",
                    f"Compose {'.'.join(map(str, compose))} ignores it: the container starts without a GPU",
                    "use deploy.resources.reservations.devices",
                )
            )
        if any(variable.startswith("SERVEKIT_") and variable != "SERVEKIT_DOMAIN" for variable in environment):
            findings += [
                *_check_grace(name, service, str(environment.get("SERVEKIT_DRAIN_S") or drain_s), margin_s),
                *_check_mounts(name, service),
                *_check_secrets(name, service, project.get("secrets", {})),
            ]
    return [next((located(each, path) for path in files if line_of(path, each.key)), each) for each in findings]


def _about(where: tuple[str, str], name: str, message: str, remedy: str) -> Finding:
    """Make an error about a key of a service."""
    return error(name, message, key=f"services.{'.'.join(where)}", remedy=remedy)


def images_of(project: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the images the project starts, without those of profiles that are not enabled."""
    services = project.get("services", {}).values()
    return tuple(dict.fromkeys(str(service["image"]) for service in services if service.get("image")))


def reserves_gpu(project: Mapping[str, Any]) -> bool:
    """Whether a service reserves a GPU."""
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
    grace_s = seconds_of(str(service.get("stop_grace_period") or STOP_GRACE))
    if not drain.isdecimal():
        yield _about(
            (name, "environment.SERVEKIT_DRAIN_S"),
            "compose-grace",
            f"is {drain!r}, not a number of seconds",
            "write it without a unit, such as SERVEKIT_DRAIN_S=60",
        )
    elif grace_s <= int(drain) + margin_s:
        yield _about(
            (name, "stop_grace_period"),
            "compose-grace",
            f"is {grace_s:g} s, but servekit may need {drain} + {margin_s} s: Docker would kill it",
            f"set ENDPOINT_STOP_GRACE to {int(drain) + 2 * margin_s}s, or lower SERVEKIT_DRAIN_S",
        )


def _check_mounts(name: str, service: Mapping[str, Any]) -> Iterator[Finding]:
    for mount in service.get("volumes") or ():
        source = Path(str(mount.get("source", "")))
        if mount.get("type") == "bind" and not source.exists():
            yield _about(
                (name, "volumes"),
                "compose-mount",
                f"{source} does not exist, for the mount on {mount.get('target')}",
                "correct the path in .env, or create it",
            )


def _check_secrets(name: str, service: Mapping[str, Any], secrets: Mapping[str, Any]) -> Iterator[Finding]:
    user, _, group = str(service.get("user") or DEFAULT_USER).partition(":")
    group = group or "0"
    for used in service.get("secrets") or ():
        path = Path(str(secrets.get(used.get("source"), {}).get("file", os.devnull)))
        if path != Path(os.devnull) and (reason := _why_unusable(path, user, group)):
            yield _about(
                (name, "secrets"),
                "compose-secret",
                f"{path}: {reason}",
                f"sudo chown 0:0 {path} && sudo chmod 0440 {path}, or ENDPOINT_USER=$(id -u):0 for a file of your own",
            )


def _why_unusable(path: Path, user: str, group: str) -> str:
    """Return why the guard rejects the file; empty if this user or root owns it and only this user can read it."""
    try:
        status = path.stat()
    except OSError as problem:
        return problem.strerror or str(problem)
    owner, mode = str(status.st_uid), stat.S_IMODE(status.st_mode)
    by_group = owner == "0" and str(status.st_gid) == group and mode & 0o040
    if not mode & 0o027 and (owner == user or by_group):
        return ""
    return f"owner {owner}:{status.st_gid}, mode {mode:04o}: user {user}:{group} cannot use it"


def _run(*arguments: str) -> str:
    program = shutil.which("docker")
    if program is None:
        raise FileNotFoundError("no program `docker` on the PATH")
    answer = subprocess.run([program, "compose", *arguments], capture_output=True, timeout=15, check=True, text=True)
    return answer.stdout
