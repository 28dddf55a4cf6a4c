"""The Compose files as Compose resolves them: every combination is valid, and no two places can drift apart."""

import itertools
import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from servekit import __version__
from servekit.preflight.docker.compose import seconds_of
from servekit.serve.plan import STOP_MARGIN_S
from servekit.settings import Settings, variable_of
from tests.conftest import ROOT
from tests.container.stack import Stack

OVERLAYS = ("compose.cpu.yaml", "compose.offline.yaml")
PROFILES = ("", "observability", "tls", "*")
COMBINATIONS = [
    pytest.param(("compose.yaml", *overlays), profile, id="+".join([*overlays, profile or "none"]))
    for count in range(len(OVERLAYS) + 1)
    for overlays in itertools.combinations(OVERLAYS, count)
    for profile in PROFILES
]
FIXED_IN_THE_IMAGE = {
    *("config", "engine", "engine_patches", "target", "state_dir", "cache_dir", "tls_cert", "tls_key"),
}
"""Settings that do not belong in .env: paths inside the container, and what the image was built for."""


Resolve = Callable[..., dict[str, Any]]


@pytest.fixture
def resolve(client: docker.DockerClient, tmp_path: Path) -> Resolve:
    """Resolve the project with Compose as on a user's host, without this machine's replacement images."""

    def ask(files: tuple[str, ...] = ("compose.yaml",), profile: str = "", **env: str) -> dict[str, Any]:
        name = f"servekit-test-{secrets.token_hex(3)}"
        options = ["--profile", profile] if profile else []
        stack = Stack(name, tmp_path, files, client=client, **env)
        output: dict[str, Any] = json.loads(stack.compose(*options, "config", "--format=json"))
        return output

    return ask


@pytest.mark.parametrize(("files", "profile"), COMBINATIONS)
def test_every_combination_is_valid(resolve: Resolve, files: tuple[str, ...], profile: str) -> None:
    """Each combination of files and profiles resolves, and no container gets more rights than it needs."""
    for name, service in resolve(files, profile)["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["pids_limit"] > 0, name
        assert service["logging"]["options"]["max-size"], name
        assert service["restart"] == "unless-stopped", name
        addresses = [port.get("host_ip") for port in service.get("ports", [])]
        assert name == "caddy" or set(addresses) <= {"127.0.0.1"}, name


SCALE = ("compose.scale.yaml",)


@pytest.mark.parametrize("profiles", ["", "2", "3", "8", "4,observability,tls"])
def test_each_replica_has_its_own(resolve: Resolve, profiles: str) -> None:
    """As many replicas as the profile says, each with its own GPU, caches and state; only the gateway is reached."""
    project = resolve(SCALE, SERVEKIT_API_KEYS_FILE="./keys", **({"COMPOSE_PROFILES": profiles} if profiles else {}))
    services = project["services"]
    replicas = {name: service for name, service in services.items() if name.startswith("servekit-")}
    assert len(replicas) == int(re.sub(r"\D", "", profiles) or 2)
    assert services["router"]["environment"]["REPLICAS"] == (profiles or "2")
    single = resolve()["services"]["servekit"]
    own = {"deploy", "networks", "ports", "profiles", "volumes", "environment", "secrets"}
    for number, service in enumerate(replicas.values()):
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["device_ids"] == [str(number)]
        assert {key: service[key] for key in service.keys() - own} == {key: single[key] for key in single.keys() - own}
        assert service["environment"].keys() == single["environment"].keys()
        assert {each["source"]: each["target"] for each in service["volumes"]}.items() >= {
            ("models", "/models"),
            (f"cache-{number + 1}", "/var/cache/servekit"),
            (f"state-{number + 1}", "/var/lib/servekit"),
        }
    assert {name for name, service in services.items() if service.get("ports")} <= {
        *("gateway", "caddy", "prometheus", "grafana")
    }
    assert set(services["router"]["networks"]) == {"inside"}
    assert project["networks"]["inside"]["internal"]
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name


def test_replicas_need_a_key_file(resolve: Resolve) -> None:
    """Without a key file each replica would make a key of its own: Compose says what is missing."""
    with pytest.raises(AssertionError, match="one key file for all of them"):
        resolve(SCALE)


def test_grace_is_longer_than_the_drain(resolve: Resolve) -> None:
    """Stop grace > servekit's own stop deadline > drain, in compose.yaml and in the Dockerfile's advice."""
    drain_s = Settings.model_fields["drain_s"].default
    grace_s = seconds_of(resolve()["services"]["servekit"]["stop_grace_period"])
    assert grace_s > drain_s + STOP_MARGIN_S > drain_s
    advised = re.search(r"--stop-timeout (\d+)", (ROOT / "Dockerfile").read_text())
    assert advised
    assert int(advised[1]) == grace_s


def test_every_setting_can_be_set(resolve: Resolve) -> None:
    """Every setting that .env may hold reaches the container and is explained in the example, which holds no others."""
    variables = {variable_of(name) for name in Settings.model_fields if name not in FIXED_IN_THE_IMAGE}
    published = {"SERVEKIT_HOST", "SERVEKIT_PORT", "SERVEKIT_OBSERVE_HOST", "SERVEKIT_OBSERVE_PORT"}
    service = resolve()["services"]["servekit"]
    assert {name for name in service["environment"] if name.startswith("SERVEKIT_")} == variables - published
    example = (ROOT / ".env.example").read_text()
    used = set(
        re.findall(
            r"\$\{([A-Z_0-9]+)", "".join((ROOT / name).read_text() for name in ("compose.yaml", *OVERLAYS, *SCALE))
        )
    )
    explained = set(re.findall(r"^# ?([A-Z_0-9]+)=", example, re.MULTILINE))
    hub = {"HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"}
    assert hub <= service["environment"].keys()
    assert explained == used | variables | hub | {"COMPOSE_FILE", "COMPOSE_PROFILES"}


def test_example_shows_the_defaults(resolve: Resolve) -> None:
    """Enabling every line of .env.example gives the same project as no .env, except for settings without a default."""
    lines = re.findall(r"^# ?([A-Z_]+=\S+)", (ROOT / ".env.example").read_text(), re.MULTILINE)
    shown = dict(line.split("=", 1) for line in lines if not line.startswith(("COMPOSE_", "SERVEKIT_API_KEYS_FILE")))
    plain, full = resolve(profile="*"), resolve(profile="*", **shown)
    for project in (plain, full):
        project.pop("name"), project.pop("volumes"), project.pop("networks"), project.pop("secrets")
        for service in project["services"].values():
            service.pop("environment", None)
            for port in service.get("ports", []):
                port.pop("published")
    assert full == plain


def test_second_tenant_is_the_same_file(resolve: Resolve) -> None:
    """Two tenants with different project, GPU, port and key share nothing."""
    first = resolve()
    second = resolve(ENDPOINT_GPU="1", SERVEKIT_API_KEYS_FILE="./b.keys")
    devices = [
        project["services"]["servekit"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for project in (first, second)
    ]
    assert devices == [["0"], ["1"]]
    assert second["secrets"]["api_keys"]["file"] == str(ROOT / "b.keys")
    names = [{each["name"] for each in project["volumes"].values()} for project in (first, second)]
    assert not names[0] & names[1]


def test_own_image_is_tagged_with_the_version(resolve: Resolve) -> None:
    """The image's tag is servekit's version, with the suffix -cpu for the CPU."""
    assert resolve()["services"]["servekit"]["image"] == f"servekit:{__version__}"
    on_cpu = resolve(("compose.yaml", "compose.cpu.yaml"))
    assert on_cpu["services"]["servekit"]["image"] == f"servekit:{__version__}-cpu"


def test_images_are_pinned() -> None:
    """No image has a moving tag."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    images = [service["image"] for service in compose["services"].values()]
    images += re.findall(r"image: (\S+)", (ROOT / "compose.scale.yaml").read_text())
    images += re.findall(r"^ARG \w*BASE_IMAGE=(\S+)", (ROOT / "deploy/router/Dockerfile").read_text(), re.MULTILINE)
    images += re.findall(r"^ARG \w*BASE_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for image in images:
        tag = image.rstrip("}").rpartition(":")[2]
        assert tag not in {"latest", "stable", ""}, image
        assert re.search(r"\d|bookworm", tag), image
