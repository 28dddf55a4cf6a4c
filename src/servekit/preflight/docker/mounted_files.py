"""The files of this host that a Compose service mounts: whether they exist, and suit the container's user."""

import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from servekit.file_trouble import explain, find_trouble
from servekit.preflight.docker.container_user import READ, WRITE, ContainerUser
from servekit.preflight.findings import Finding, error, warning
from servekit.preflight.hub.hub_model import is_offline

WRITTEN: Final = {
    "SERVEKIT_CACHE_DIR": "/var/cache/servekit",
    "SERVEKIT_STATE_DIR": "/var/lib/servekit",
    "HF_HOME": "/models/huggingface",
}
"""The variables and values of the image that name folders which the endpoint writes to."""
Located = tuple[str, Finding]
"""A finding and the key of the service that it is about."""


def check_mounted_files(service: Mapping[str, Any], secrets: Mapping[str, Any]) -> Iterator[Located]:
    """Check the mounts, the model and the key file of a service of servekit, and the folders that it writes to."""
    environment = service.get("environment") or {}
    user = ContainerUser.of(service)
    yield from _check_mounts(service)
    yield from _check_model(service, str(environment.get("SERVEKIT_MODEL") or ""), user)
    if user:
        yield from _check_written(service, environment, user)
        yield from _check_secrets(service, secrets, user)


def _check_mounts(service: Mapping[str, Any]) -> Iterator[Located]:
    for mount in service.get("volumes") or ():
        source = Path(str(mount.get("source", "")))
        if mount.get("type") == "bind" and not os.path.lexists(source) and not find_trouble(source):
            message = f"{source} does not exist, for the mount on {mount.get('target')}"
            yield "volumes", error("compose-mount", message, remedy="correct the path in .env, or create it")


def _check_model(service: Mapping[str, Any], model: str, user: ContainerUser | None) -> Iterator[Located]:
    """Check that the folder of the model is mounted, and that the container's user can read it."""
    if not model.startswith("/"):
        return
    mount, inner = _mounted(service, model)
    if mount is None:
        message = f"nothing is mounted at {model}: unless the image holds it, the endpoint ends with exit code 3"
        remedy = "mount the model's folder there, or correct the path: it is one inside the container"
        yield "environment.SERVEKIT_MODEL", warning("compose-model", message, remedy=remedy)
    elif inner and Path(str(mount["source"])).exists() and not find_trouble(inner) and not inner.exists():
        message = f"{inner} does not exist, which would be {model} in the container"
        yield (
            "environment.SERVEKIT_MODEL",
            error("compose-model", message, remedy="correct the path, or copy the model there"),
        )
    elif inner and user and (path := user.denied(Path(str(mount["source"])), inner, READ)):
        message = f"user {user} of the container cannot read {path}"
        remedy = f"run: sudo chmod -R a+rX {shlex.quote(str(inner))}"
        if path in inner.parents:
            remedy = f"run: sudo chmod a+x {shlex.quote(str(path))}"
        yield "volumes", warning("compose-model", message, got=_owner_and_mode(path), remedy=remedy)


def _check_written(
    service: Mapping[str, Any], environment: Mapping[str, Any], user: ContainerUser
) -> Iterator[Located]:
    """Check that the container's user can write to the folders of this host that the endpoint writes to."""
    given = {"SERVEKIT_MODEL": ""} | {name: str(value or "") for name, value in environment.items()}
    for variable, default in WRITTEN.items():
        mount, inner = _mounted(service, given.get(variable) or default)
        downloads = not (is_offline(given) or given["SERVEKIT_MODEL"].startswith("/"))
        if not (mount and inner) or (variable == "HF_HOME" and not downloads):
            continue
        source = Path(str(mount["source"]))
        there = next((each for each in (inner, *inner.parents) if os.access(each, os.F_OK)), source)
        if mount.get("read_only"):
            message, got, remedy = "is mounted read-only, and the endpoint writes to it", "", "mount it without :ro"
        elif path := user.denied(source, there, WRITE) if there.is_relative_to(source) else None:
            message, got = f"user {user} of the container cannot write to {path}", _owner_and_mode(path)
            remedy = f"run: sudo chown -R {user.uid} {shlex.quote(str(path))}, or use a named volume"
        else:
            continue
        yield "volumes", warning("compose-mount", f"{mount['target']}: {message}", got=got, remedy=remedy)


def _mounted(service: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any] | None, Path | None]:
    """Return the mount that holds a path of the container, and where it is on this host: None for a volume."""
    covering = [
        mount for mount in service.get("volumes") or () if Path(path).is_relative_to(str(mount.get("target") or "-"))
    ]
    mount = max(covering, key=lambda each: len(str(each["target"])), default=None)
    if mount is None or mount.get("type") != "bind":
        return mount, None
    return mount, Path(str(mount["source"]), Path(path).relative_to(str(mount["target"])))


def _check_secrets(service: Mapping[str, Any], secrets: Mapping[str, Any], user: ContainerUser) -> Iterator[Located]:
    for used in service.get("secrets") or ():
        path = Path(str(secrets.get(used.get("source"), {}).get("file", os.devnull)))
        if path == Path(os.devnull):
            continue
        try:
            status = path.stat()
        except PermissionError as problem:
            why = explain(problem, path) | {"remedy": "run servekit doctor as a user who may look at it"}
            yield "secrets", warning("compose-secret", **why)
            continue
        except OSError as problem:
            message = f"{path}: {explain(problem, path)['message']}"
            remedy = "correct SERVEKIT_API_KEYS_FILE in .env, or create the file (docs/container.md, Keys)"
            yield "secrets", error("compose-secret", message, remedy=remedy)
            continue
        if commands := _mending(path, status, user):
            message = f"{path}: user {user} of the container cannot use it"
            yield "secrets", error("compose-secret", message, got=_owner_and_mode(path), remedy=f"run: {commands}")


def _mending(path: Path, status: os.stat_result, user: ContainerUser) -> str:
    """Return what makes the guard accept a key file: this user or root owns it, and only this user can read it."""
    own, quoted = status.st_uid == user.uid, shlex.quote(str(path))
    shared = status.st_uid == 0 and status.st_gid in user.groups
    commands = [] if own or shared else [f"sudo chown 0:{user.gid} {quoted}"]
    if status.st_mode & 0o027 or not user.may(status, READ) or commands:
        commands.append(f"sudo chmod {'0600' if own else '0440'} {quoted}")
    return " && ".join(commands)


def _owner_and_mode(path: Path) -> str:
    status = path.stat()
    return f"owner {status.st_uid}:{status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}"
