"""The built image: it runs without rights, holds no leftovers, and leaves the engine's packages unchanged."""

import json
import re
import subprocess
from typing import Any

import docker
import pytest

from servekit import __version__
from servekit.preflight.host.patches import is_recent_pillow
from servekit.settings import Settings
from tests.conftest import ROOT
from tests.container.conftest import build_image

FREEZE = """
import importlib.metadata as metadata
print("\\n".join(sorted(f"{each.name}=={each.version}" for each in metadata.distributions())))
"""


def run(client: docker.DockerClient, image: str, *command: str, **options: Any) -> str:
    """Run a program of the image and return its output."""
    output: bytes = client.containers.run(image, list(command), remove=True, **options)
    return output.decode().strip()


def test_engine_has_the_same_packages(client: docker.DockerClient, image: str) -> None:
    """The finished image has the same packages of the engine, in the same versions, as the engine's stage."""
    build_image("servekit-test:engine", "engine-cpu")
    before, after = (
        run(client, each, "-c", FREEZE, entrypoint="/opt/vllm/bin/python") for each in ("servekit-test:engine", image)
    )
    assert "vllm==0.20.2+cpu" in before
    assert after == before


def test_newer_packages_go_before_the_engines(client: docker.DockerClient, image: str) -> None:
    """With the environment that servekit gives it, the engine imports Pillow from the patches' folder."""
    environment = json.loads(run(client, image, "plan", "--format", "json"))["environment"]
    program = "import PIL._imaging; print(PIL.__version__, PIL._imaging.__file__)"
    path = {"PYTHONPATH": environment["PYTHONPATH"]}
    version, file = run(client, image, "-c", program, entrypoint="/opt/vllm/bin/python", environment=path).split()
    assert is_recent_pillow(version)
    assert file.startswith("/opt/engine-patches/")


def test_builds_on_a_base_image_of_its_own(client: docker.DockerClient, image: str) -> None:
    """With ENGINE=cuda, the same steps on BASE_IMAGE build an image for the GPU, which reports a missing GPU."""
    assert image
    build_image("servekit-test:engine", "engine-cpu")
    build_image("servekit-test:cuda", "servekit", ENGINE="cuda", BASE_IMAGE="servekit-test:engine")
    assert json.loads(run(client, "servekit-test:cuda", "plan", "--format", "json"))["target"] == "cuda"
    with pytest.raises(docker.errors.ContainerError) as caught:
        run(client, "servekit-test:cuda", "serve", environment={"HF_HUB_OFFLINE": "1"})
    assert caught.value.exit_status == 3
    assert re.search(r"error: .*no NVIDIA driver answers on this host.*\[gpu-missing\]", str(caught.value))


def test_metadata(client: docker.DockerClient, image: str) -> None:
    """The image defines user, stop signal, health check, labels and start command."""
    config = client.images.get(image).attrs["Config"]
    assert config["User"] == "10001:0"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"][0].endswith("dumb-init")
    assert config["Cmd"] == ["serve"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == __version__
    health = config["Healthcheck"]
    assert health["Test"] == ["CMD", "/opt/servekit/bin/servekit", "probe", "ready"]
    assert health["StartPeriod"] >= Settings.model_fields["start_s"].default * 1e9


def test_nothing_is_left_behind(client: docker.DockerClient, image: str) -> None:
    """No compiler, installer, package list or cache remains, and the image's user cannot write to servekit's files."""
    program = (
        "command -v gcc cc g++ clang uv pip; "
        "find /root/.cache /tmp /var/lib/apt/lists /var/cache/servekit /var/lib/servekit /models -mindepth 1; "
        "find /opt/servekit /opt/engine-patches /opt/vllm /etc/servekit /usr /etc -xdev -writable -not -type l; true"
    )
    assert run(client, image, "-c", program, entrypoint="/bin/bash", stderr=False) == ""


def test_commands_need_no_writable_root(client: docker.DockerClient, image: str) -> None:
    """`check`, `plan` and `--version` work with a read-only root, without network, capabilities or a home folder."""
    strict = {"read_only": True, "network_mode": "none", "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
    assert run(client, image, "--version", **strict).startswith(f"servekit {__version__}, for vLLM 0.20.2")
    assert "all valid" in run(client, image, "check", "--profile-only", **strict)
    plan = json.loads(run(client, image, "plan", "--format", "json", **strict))
    assert plan["target"] == "cpu"


def test_any_user_of_group_0(client: docker.DockerClient, image: str) -> None:
    """Any user of group 0 may write to the folders for volumes, as OpenShift and key files require."""
    program = "touch /var/lib/servekit/a /var/cache/servekit/a /models/a && id -u"
    assert run(client, image, "-c", program, entrypoint="/bin/bash", user="4711:0") == "4711"


def test_bill_of_materials(client: docker.DockerClient, image: str) -> None:
    """`make sbom` lists every installed package by name and version."""
    subprocess.run(["make", "-s", "sbom"], cwd=ROOT, check=True, capture_output=True)  # noqa: S607 - as a user does
    listed = set()
    for part in ("servekit", "engine-patches", "engine-cpu"):
        components = json.loads((ROOT / f"dist/{part}.cdx.json").read_text())["components"]
        listed |= {f"{each['name'].lower()}=={each['version']}" for each in components}
    pythons = ("/opt/servekit/bin/python", "/opt/vllm/bin/python")
    installed = {
        line.lower() for python in pythons for line in run(client, image, "-c", FREEZE, entrypoint=python).split()
    }
    own = {f"servekit=={__version__}", "vllm==0.20.2+cpu"}
    assert {name.replace("_", "-") for name in installed - own} <= {name.replace("_", "-") for name in listed}


@pytest.mark.parametrize("name", ["SERVEKIT_PROT", "SERVEKIT_PORT"])
def test_wrong_variables_end_with_2(client: docker.DockerClient, image: str, name: str) -> None:
    """A mistake in a variable makes the container exit with 2 and name the variable."""
    with pytest.raises(docker.errors.ContainerError) as caught:
        run(client, image, environment={name: "x"})
    assert caught.value.exit_status == 2
    assert name in str(caught.value)
