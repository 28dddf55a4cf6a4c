"""`servekit doctor`: whether Docker on this host can run the endpoint; asks the engine, changes nothing."""

import importlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servekit.nvml import GpuSurvey
from servekit.preflight.docker.compose import check_project, compose_version, images_of, read_project, reserves_gpu
from servekit.preflight.findings import Finding, error, has_errors, in_order, warning
from servekit.preflight.host.gpu_rules import check_driver, one_gpu
from servekit.preflight.host.gpus import SurveyGpus, check_readable, survey_gpus

ENGINE_NEEDED: Final = (25, 0)
"""The first Docker Engine with `start_interval` in health checks."""
API_VERSION: Final = "1.44"
"""The API of Docker Engine 25, and the oldest that Engine 29 speaks."""
COMPOSE_NEEDED: Final = (2, 24)
"""The first Compose with `!reset`, which the CPU override needs."""
_SOCKET: Final = "unix:///var/run/docker.sock"


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


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor saw and found. `docker` is None where it does not answer, `driver` empty without one."""

    docker: DockerFacts | None
    driver: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether `docker compose up` would fail, or end badly."""
        return has_errors(self.findings)

    def as_dict(self) -> dict[str, object]:
        """Give the diagnosis as values that JSON can hold."""
        facts = self.docker and {
            "engine": self.docker.engine,
            "compose": self.docker.compose,
            "architecture": self.docker.architecture,
            "runtimes": list(self.docker.runtimes),
            "cdi_devices": list(self.docker.cdi_devices),
            "images": dict(self.docker.images or {}),
        }
        found = [finding.as_dict() for finding in self.findings]
        return {"docker": facts, "driver": self.driver, "failed": self.failed, "findings": found}


def diagnose(
    files: Sequence[Path],
    env_file: Path | None,
    *,
    drain_s: int,
    margin_s: int,
    survey: SurveyGpus = survey_gpus,
) -> Diagnosis:
    """Examine this host and the Compose project in the working folder, or of `files`.

    `drain_s` is the default drain time, `margin_s` what servekit adds to it before it kills.
    """
    project, findings = read_project(files, env_file)
    facts, unreachable = inspect_docker(images_of(project) if project else ())
    findings += unreachable
    gpu = reserves_gpu(project) if project else True
    if facts:
        findings += check_docker(facts, gpu=gpu)
        if project:
            compose = version_of(facts.compose)
            findings += check_project(project, compose=compose, drain_s=drain_s, margin_s=margin_s)
    found = survey() if gpu else None
    if gpu:
        findings += check_driver_of_host(found)
    return Diagnosis(facts, found.driver if found else "", in_order(findings))


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
    if refusal := _refused(base_url or os.environ.get("DOCKER_HOST") or _SOCKET):
        return None, (_unreachable(refusal),)
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
        if version_of(engine) < ENGINE_NEEDED:
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


def check_docker(facts: DockerFacts, *, gpu: bool) -> tuple[Finding, ...]:
    """Judge what Docker said; `gpu`: whether a container is to have one."""
    findings = [*_check_versions(facts), *_check_images(facts)]
    cdi = any(device.startswith("nvidia.com/gpu") for device in facts.cdi_devices)
    if gpu and "nvidia" not in facts.runtimes and not cdi:
        findings.append(
            error(
                "docker-gpu",
                "neither the NVIDIA runtime nor CDI devices nvidia.com/gpu: a container with a GPU would fail with "
                '`could not select device driver "nvidia"`',
                remedy="install nvidia-container-toolkit, run `nvidia-ctk runtime configure`, restart Docker",
            )
        )
    return in_order(findings)


def check_driver_of_host(survey: GpuSurvey | None) -> tuple[Finding, ...]:
    """Judge the NVIDIA driver of this host, which its containers use."""
    if survey is None or not survey.gpus:
        return (*check_readable(survey), *one_gpu(survey, {})[1])
    return (*check_readable(survey), *check_driver(survey))


def _refused(url: str) -> OSError | None:
    """Say why a Docker Engine's Unix socket refuses a connection.

    Tried before the SDK does: docker 7.2 leaves its socket open when it cannot connect (transport/unixconn.py).
    """
    scheme, _, path = url.partition("://")
    if scheme not in {"unix", "http+unix"}:
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
        except OSError as problem:
            return problem
    return None


def _check_versions(facts: DockerFacts) -> Iterator[Finding]:
    if version_of(facts.engine) < ENGINE_NEEDED:
        yield _too_old(facts.engine)
    if version_of(facts.compose) < COMPOSE_NEEDED:
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
            yield warning(
                "docker-image",
                "the image is not on this host: the first `up` pulls or builds it",
                subject=image,
                remedy="fetch it before: docker compose pull, docker compose build",
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


def version_of(text: str) -> tuple[int, int]:
    """Return the first two numbers of a version, 0.0 where there are none."""
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
