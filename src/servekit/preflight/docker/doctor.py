"""`servekit doctor` checks whether Docker on this host can run the endpoint. It changes nothing."""

import contextlib
import importlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from servekit.nvml import GpuSurvey
from servekit.preflight.docker.compose import (
    COMPOSE_FILES,
    check_project,
    compose_version,
    images_of,
    read_project,
    reserves_gpu,
)
from servekit.preflight.findings import Finding, error, has_errors, in_order, warning
from servekit.preflight.host.gpu_rules import check_driver, one_gpu
from servekit.preflight.host.gpus import SurveyGpus, check_readable, survey_gpus
from servekit.preflight.host.patches import version_numbers
from servekit.preflight.memory.placement import LARGE_GPU_BYTES

ENGINE_NEEDED: Final = "25.0"
"""The first Docker Engine with `start_interval` in health checks."""
API_VERSION: Final = "1.44"
"""The API of Docker Engine 25, and the oldest that Engine 29 supports."""
COMPOSE_NEEDED: Final = "2.24"
"""The first Compose with `!reset`, which the CPU override needs."""
_JOIN_GROUP: Final = "run: sudo usermod -aG docker $USER, and log in again"
_NO_RUNTIME: Final = "Docker has no runtime `nvidia`: a container that names it would not start"
_NO_GPUS: Final = (
    "Docker has neither the NVIDIA runtime nor CDI devices nvidia.com/gpu: a container with a GPU would fail with "
    '`could not select device driver "nvidia"`'
)
_SOCKET: Final = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class DockerFacts:
    """What Docker reports. Versions are as printed; `compose` is empty without the plugin."""

    engine: str
    compose: str
    architecture: str
    runtimes: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    """The project's images and their platform such as `linux/amd64`; the platform of an absent image is empty."""
    cpu_images: tuple[str, ...] = ()
    """Those of them that are built for the CPU."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of the doctor. `docker` is None if it does not answer, `driver` is empty without one."""

    docker: DockerFacts | None
    driver: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether `docker compose up` would fail, or lose requests when it stops."""
        return has_errors(self.findings)

    def as_dict(self) -> dict[str, object]:
        """Return the diagnosis as values that JSON can hold."""
        return {
            "docker": self.docker and asdict(self.docker),
            "driver": self.driver,
            "failed": self.failed,
            "findings": [finding.as_dict() for finding in self.findings],
        }


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
    project, unreadable = read_project(files, env_file)
    facts, unreachable = inspect_docker(images_of(project) if project else ())
    findings = [*unreadable, *unreachable]
    gpu = reserves_gpu(project) if project else True
    found = survey() if gpu else None
    if facts:
        runtimes = [service.get("runtime") for service in (project or {}).get("services", {}).values()]
        findings += check_docker(facts, gpu=gpu, runtime="nvidia" in runtimes)
    if project:
        findings += check_project(
            project,
            compose=version_numbers(facts.compose if facts else compose_version()),
            drain_s=drain_s,
            margin_s=margin_s,
            files=files or [path for path in COMPOSE_FILES if path.exists()],
            host_gpus=len(found.gpus) if found else None,
            large_gpus=min((each.usable_bytes for each in found.gpus), default=0) >= LARGE_GPU_BYTES
            if found
            else False,
            cpu_images=facts.cpu_images if facts else (),
        )
    if gpu:
        findings += check_driver_of_host(found)
    return Diagnosis(facts, found.driver if found else "", in_order(findings))


def inspect_docker(images: tuple[str, ...] = ()) -> tuple[DockerFacts | None, tuple[Finding, ...]]:
    """Query the Docker Engine of the environment; None and the reason if that fails."""
    try:
        docker: Any = importlib.import_module("docker")
    except ImportError:
        return None, (
            error(
                "docker-sdk",
                "the docker SDK for Python is not installed",
                remedy="in a checkout of servekit: pip install '.[doctor]', or make doctor",
            ),
        )
    try:
        _connect(os.environ.get("DOCKER_HOST") or _SOCKET)
        # Without a version the SDK queries it in the constructor, and leaves its socket open if that fails.
        with contextlib.closing(docker.from_env(timeout=5, version=API_VERSION)) as client:
            engine = str(client.version(api_version=False).get("Version", ""))
            if version_numbers(engine) < version_numbers(ENGINE_NEEDED):
                return None, (
                    error(
                        "docker-engine",
                        f"Docker Engine {engine}; {ENGINE_NEEDED} is the first with start_interval",
                        remedy="install a newer Docker Engine",
                    ),
                )
            info = client.info()
            found = {image: _attributes(docker, client, image) for image in images}
            return DockerFacts(
                engine=engine,
                compose=compose_version(),
                architecture=str(info.get("Architecture", "")),
                runtimes=tuple(info.get("Runtimes") or ()),
                cdi_devices=_cdi_devices(info),
                images={image: f"{each['Os']}/{each['Architecture']}" if each else "" for image, each in found.items()},
                cpu_images=tuple(image for image, each in found.items() if _is_for_cpu(each)),
            ), ()
    except (docker.errors.DockerException, OSError) as problem:
        may_not = isinstance(problem, PermissionError)
        return None, (
            error(
                "docker-unreachable",
                f"the Docker Engine does not answer: {problem}",
                remedy=_JOIN_GROUP if may_not else "start it, or set DOCKER_HOST",
            ),
        )


def check_docker(facts: DockerFacts, *, gpu: bool, runtime: bool = False) -> list[Finding]:
    """Check what Docker reports; `gpu`: a container needs one; `runtime`: by `runtime: nvidia`."""
    cdi = any(device.startswith("nvidia.com/gpu") for device in facts.cdi_devices)
    checks = (
        (
            # A missing one is reported where the project is read.
            facts.compose and version_numbers(facts.compose) < version_numbers(COMPOSE_NEEDED),
            error(
                "docker-compose",
                f"Compose {facts.compose}; {COMPOSE_NEEDED} is the first with !reset",
                remedy="install a newer docker-compose-plugin or docker-compose-v2",
            ),
        ),
        (
            facts.architecture not in {"x86_64", "amd64"},
            warning("docker-platform", f"the engine is {facts.architecture}, the image is built for linux/amd64"),
        ),
        (
            gpu and "nvidia" not in facts.runtimes and (runtime or not cdi),
            error(
                "docker-gpu",
                _NO_RUNTIME if runtime else _NO_GPUS,
                remedy="install nvidia-container-toolkit, run `nvidia-ctk runtime configure`, restart Docker",
            ),
        ),
    )
    return [*(finding for found, finding in checks if found), *_check_images(facts)]


def check_driver_of_host(survey: GpuSurvey | None) -> tuple[Finding, ...]:
    """Check the NVIDIA driver of this host, which its containers use."""
    findings = check_driver(survey) if survey and survey.gpus else one_gpu(survey, {})[1]
    return (*check_readable(survey), *findings)


def _connect(url: str) -> None:
    """Raise an OSError where a Docker Engine's Unix socket rejects a connection.

    docker 7.2 leaves its socket open when it cannot connect (transport/unixconn.py), so the doctor tries this first.
    """
    scheme, _, path = url.partition("://")
    if scheme in {"unix", "http+unix"}:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(path)


def _check_images(facts: DockerFacts) -> Iterator[Finding]:
    for image, system in facts.images.items():
        if not system:
            yield warning(
                "docker-image",
                "the image is not on this host: the first `docker compose up` pulls or builds it",
                subject=image,
                remedy="fetch it first: docker compose pull, or docker compose build",
            )
        elif system != "linux/amd64":
            yield error(
                "docker-platform",
                f"the image is for {system}",
                subject=image,
                remedy="pull it for linux/amd64",
            )


def _attributes(docker: Any, client: Any, image: str) -> Mapping[str, Any]:
    try:
        return dict(client.images.get(image).attrs)
    except docker.errors.ImageNotFound:
        return {}


def _is_for_cpu(attributes: Mapping[str, Any]) -> bool:
    return "SERVEKIT_TARGET=cpu" in ((attributes.get("Config") or {}).get("Env") or ())


def _cdi_devices(info: Mapping[str, Any]) -> tuple[str, ...]:
    # Docker Engine 28.2 and later list the devices; older ones only name the folders of the specifications
    discovered = info.get("DiscoveredDevices") or ()
    files = [path.name for folder in info.get("CDISpecDirs") or () for path in Path(folder).glob("*")]
    return (
        *(str(device.get("ID", "")) for device in discovered if device.get("Source") == "cdi"),
        *("nvidia.com/gpu" for name in files if "nvidia" in name),
    )
