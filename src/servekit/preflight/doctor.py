"""`servekit doctor`: whether Docker on this host can run the endpoint; asks the engine, changes nothing."""

import importlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from servekit.preflight.findings import Finding, error, in_order, note, warning

ENGINE_NEEDED: Final = (25, 0)
"""The first Docker Engine with `start_interval` in health checks."""
API_VERSION: Final = "1.44"
"""The API of Docker Engine 25, and the oldest that Engine 29 speaks."""
COMPOSE_NEEDED: Final = (2, 24)
"""The first Compose with `!reset`, which the CPU override needs."""
GPUS_KEY_SINCE: Final = (2, 30)
"""The first Compose that acts on a service's `gpus`; before, 2.26 reads it without a word."""


@dataclass(frozen=True)
class DockerFacts:
    """What Docker says of itself. Versions as printed, `compose` empty without the plugin; images by tag."""

    engine: str
    compose: str
    architecture: str
    runtimes: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    images: Mapping[str, str] | None = None
    """Wanted images and their platform such as `linux/amd64`; an empty platform where the image is not there."""


def inspect_docker(
    images: tuple[str, ...] = (), base_url: str | None = None
) -> tuple[DockerFacts | None, tuple[Finding, ...]]:
    """Ask the Docker Engine of the environment, or of `base_url`; None with the reason when it cannot be asked."""
    try:
        docker: Any = importlib.import_module("docker")
    except ImportError:
        missing = error(
            "docker-sdk",
            "the docker SDK for Python is not installed",
            remedy="install servekit with its extra: servekit[doctor]",
        )
        return None, (missing,)
    try:
        # a version of its own: the SDK would ask for one while it is made, and leave its socket open if that fails
        client = (
            docker.DockerClient(base_url=base_url, timeout=5, version=API_VERSION)
            if base_url
            else docker.from_env(timeout=5, version=API_VERSION)
        )
    except docker.errors.DockerException as problem:
        return None, (_unreachable(problem),)
    try:
        engine = str(client.version(api_version=False).get("Version", ""))
        if _version(engine) < ENGINE_NEEDED:
            return None, (_too_old(engine),)
        info = client.info()
        facts = DockerFacts(
            engine=engine,
            compose=compose_version(),
            architecture=str(info.get("Architecture", "")),
            runtimes=tuple(info.get("Runtimes") or ()),
            cdi_devices=_cdi_devices(info),
            images={image: _platform(docker, client, image) for image in images},
        )
    except (docker.errors.DockerException, OSError) as problem:
        return None, (_unreachable(problem),)
    finally:
        client.close()
    return facts, ()


def compose_version() -> str:
    """Ask for the version of the Compose plugin, empty when there is none."""
    program = shutil.which("docker")
    if program is None:
        return ""
    try:
        answer = subprocess.run(
            [program, "compose", "version", "--format", "json"],
            capture_output=True,
            timeout=5,
            check=True,
        )
        return str(json.loads(answer.stdout)["version"]).removeprefix("v")
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return ""


def check_docker(facts: DockerFacts, target: str) -> tuple[Finding, ...]:
    """Judge what Docker said for target "cuda" or "cpu"."""
    findings = [*_check_versions(facts), *_check_images(facts)]
    nvidia = "nvidia" in facts.runtimes
    cdi = [device for device in facts.cdi_devices if device.startswith("nvidia.com/gpu")]
    if target == "cuda" and not nvidia and not cdi:
        findings.append(
            error(
                "docker-gpu",
                "neither the NVIDIA runtime nor CDI devices nvidia.com/gpu: a container with a GPU would fail with "
                '`could not select device driver "nvidia"`',
                remedy="install nvidia-container-toolkit, run `nvidia-ctk runtime configure`, restart Docker",
            )
        )
    if target == "cpu" and not nvidia:
        findings.append(
            note(
                "docker-gpu",
                "no NVIDIA runtime: the CPU override must clear deploy.resources with !reset",
            )
        )
    return in_order(findings)


def check_compose_file(path: Path, compose: str) -> tuple[Finding, ...]:
    """Find what the installed Compose would silently ignore in a Compose file."""
    try:
        content = yaml.load(path.read_bytes(), Loader=_ComposeLoader)  # noqa: S506 - a SafeLoader that knows !reset
        services = content["services"].items()
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as problem:
        unreadable = error("docker-compose", f"no Compose file with services: {problem}", subject=path.name)
        return (unreadable,)
    findings: list[Finding] = []
    for name, service in services:
        subject = f"{path.name}: {name}"
        if not isinstance(service, dict):
            continue
        if "gpus" in service and _version(compose) < GPUS_KEY_SINCE:
            findings.append(
                error(
                    "compose-gpus",
                    f"Compose {compose or 'of unknown version'} ignores `gpus`: the container starts without a GPU",
                    subject=subject,
                    remedy="use deploy.resources.reservations.devices",
                )
            )
        if service.get("init") is not True and "build" in service:
            findings.append(
                warning(
                    "compose-init",
                    "no `init: true`: as PID 1 a Python program makes `down` wait for its time limit",
                    subject=subject,
                    remedy="add init: true, or an init in the image",
                )
            )
    return tuple(findings)


class _ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tags `!reset` and `!override` as what stands behind them."""


def _plain(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


_ComposeLoader.add_constructor("!reset", _plain)
_ComposeLoader.add_constructor("!override", _plain)


def _check_versions(facts: DockerFacts) -> Iterator[Finding]:
    if _version(facts.engine) < ENGINE_NEEDED:
        yield _too_old(facts.engine)
    if _version(facts.compose) < COMPOSE_NEEDED:
        yield error(
            "docker-compose",
            f"Compose {facts.compose or 'is not installed'}, {_dotted(COMPOSE_NEEDED)} is the first with !reset",
            remedy="install the plugin docker-compose-plugin or docker-compose-v2",
        )
    if facts.architecture not in {"x86_64", "amd64"}:
        yield warning("docker-platform", f"the engine is {facts.architecture}, the image is built for linux/amd64")


def _check_images(facts: DockerFacts) -> Iterator[Finding]:
    for image, system in (facts.images or {}).items():
        if not system:
            yield error(
                "docker-image",
                "the image is not on this host",
                subject=image,
                remedy=f"docker pull {image}, or build it",
            )
        elif system != "linux/amd64":
            yield error(
                "docker-platform",
                f"the image is for {system}",
                subject=image,
                remedy="pull it for linux/amd64",
            )


def _platform(docker: Any, client: Any, image: str) -> str:
    try:
        attributes = client.images.get(image).attrs
    except docker.errors.ImageNotFound:
        return ""
    return f"{attributes.get('Os', '')}/{attributes.get('Architecture', '')}"


def _cdi_devices(info: Mapping[str, Any]) -> tuple[str, ...]:
    # Docker Engine 28.2 and later list them; older ones tell only where the specifications lie
    discovered = info.get("DiscoveredDevices") or ()
    devices = [str(device.get("ID", "")) for device in discovered if device.get("Source") == "cdi"]
    for folder in info.get("CDISpecDirs") or ():
        devices.extend("nvidia.com/gpu" for path in sorted(Path(folder).glob("*")) if "nvidia" in path.name)
    return tuple(devices)


def _too_old(engine: str) -> Finding:
    return error(
        "docker-engine",
        f"Docker Engine {engine}, {_dotted(ENGINE_NEEDED)} is the first with start_interval",
        remedy="install a newer Docker Engine",
    )


def _unreachable(problem: Exception) -> Finding:
    return error(
        "docker-unreachable",
        f"the Docker Engine does not answer: {problem}",
        remedy="start it, set DOCKER_HOST, or add this user to the group docker",
    )


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
