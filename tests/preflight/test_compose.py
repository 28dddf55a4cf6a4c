"""The Compose project as the doctor reads it: resolved by the real Compose, or given as values."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.docker.compose import (
    check_project,
    compose_version,
    images_of,
    read_project,
    reserves_gpu,
    seconds_of,
)
from servekit.preflight.findings import Finding

DEVICE: dict[str, Any] = {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
SERVICE: dict[str, Any] = {
    "image": "x:1",
    "environment": {"SERVEKIT_DRAIN_S": None},
    "stop_grace_period": "1m20s",
    "deploy": {"resources": {"reservations": {"devices": [DEVICE]}}},
}

RUNTIME = {"SERVEKIT_MODEL": ""}

needs_compose = pytest.mark.skipif(not compose_version(), reason="no Docker Compose here")


def check(secret: Path | None = None, host_gpus: int | None = None, **changes: Any) -> list[Finding]:
    """Return the findings for an altered service, with an older Compose."""
    project = {"services": {"servekit": SERVICE | changes}, "secrets": {"keys": {"file": str(secret or os.devnull)}}}
    return check_project(
        project, compose=(2, 26), drain_s=60, margin_s=10, host_gpus=host_gpus, cpu_images=["registry/cpu-only:1"]
    )


def found(secret: Path | None = None, **changes: Any) -> list[str]:
    """Return the names of the findings for an altered service."""
    return [finding.name for finding in check(secret, **changes)]


def test_a_limit_too_small_for_embeddings() -> None:
    """A limit below what embeddings and engine need is an error where the host must hold them, else a warning."""
    limit: dict[str, Any] = {
        "deploy": {"resources": SERVICE["deploy"]["resources"] | {"limits": {"memory": str(8 << 30)}}}
    }
    (found,) = check(**limit, environment={"SERVEKIT_EMBEDDINGS": "host"})
    assert (found.name, str(found.severity)) == ("compose-memory", "error")
    assert "8.00 GiB" in found.message
    (found,) = check(**limit)
    assert str(found.severity) == "warning"
    project = {"services": {"servekit": SERVICE | limit}}
    assert check_project(project, compose=(2, 26), drain_s=60, margin_s=10, large_gpus=True) == []


def reserving(**device: Any) -> dict[str, Any]:
    """Return the `deploy` of a service that reserves a device."""
    return {"resources": {"reservations": {"devices": [device]}}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"stop_grace_period": "1m11s"}, []),
        ({"mem_limit": str(14 << 30)}, []),
        ({"mem_limit": str(8 << 30)}, ["compose-memory"]),
        ({"mem_limit": str(8 << 30), "environment": {"SERVEKIT_EMBEDDINGS": "gpu"}}, []),
        ({"mem_limit": str(8 << 30), "image": "servekit:1-cpu"}, []),
        ({"stop_grace_period": "1m10s"}, ["compose-grace"]),
        ({"stop_grace_period": None}, ["compose-grace"]),
        ({"environment": {"SERVEKIT_DRAIN_S": "100"}}, ["compose-grace"]),
        ({"environment": {"SERVEKIT_DRAIN_S": "100s"}}, ["compose-grace"]),
        ({"environment": {"SERVEKIT_DOMAIN": "x"}, "stop_grace_period": None}, []),
        ({"gpus": [{"device_ids": ["0"]}], "deploy": None}, ["compose-gpus"]),
        ({"volumes": [{"type": "bind", "source": "/nothing/here", "target": "/x"}]}, ["compose-mount"]),
        ({"volumes": [{"type": "volume", "source": "models", "target": "/models"}]}, []),
    ],
)
def test_each_trap_is_found(changes: dict[str, Any], expected: list[str]) -> None:
    """Too short a grace period, an ignored `gpus`, and mounts of missing paths each have a finding."""
    assert found(**changes) == expected


@pytest.mark.parametrize(
    ("mode", "user", "expected"),
    [
        (0o600, f"{os.getuid()}:0", []),
        (0o440, f"{os.getuid()}:0", []),
        (0o644, f"{os.getuid()}:0", ["compose-secret"]),
        (0o600, "10001:4711", ["compose-secret"]),
        (0o440, "10001:4711", ["compose-secret"]),
    ],
)
def test_key_file_the_container_cannot_use(tmp_path: Path, mode: int, user: str, expected: list[str]) -> None:
    """A key file must be readable by the container's user only."""
    keys = tmp_path / "keys"
    keys.write_text("k" * 20)
    keys.chmod(mode)
    assert found(keys, secrets=[{"source": "keys"}], user=user) == expected


@pytest.mark.parametrize(
    ("mode", "owner", "user", "remedy"),
    [
        (0o644, (10001, 10001), "10001:0", "run: sudo chmod 0600 {}"),
        (0o600, (0, 0), "10001:0", "run: sudo chmod 0440 {}"),
        (0o644, (1000, 1000), "10001:0", "run: sudo chown 0:0 {0} && sudo chmod 0440 {0}"),
        (0o600, (1000, 1000), "10001:4711", "run: sudo chown 0:4711 {0} && sudo chmod 0440 {0}"),
        (0o440, (0, 4711), "10001:0", "run: sudo chown 0:0 {0} && sudo chmod 0440 {0}"),
    ],
)
def test_key_file_has_its_own_remedy(tmp_path: Path, mode: int, owner: tuple[int, int], user: str, remedy: str) -> None:
    """The commands are those that this file lacks for this user, and after them the file has no finding."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    keys = tmp_path / "keys"
    keys.touch()
    keys.chmod(mode)
    os.chown(keys, *owner)
    (finding,) = check(keys, secrets=[{"source": "keys"}], user=user)
    assert finding.remedy == remedy.format(keys)
    subprocess.run(finding.remedy.removeprefix("run: ").replace("sudo ", ""), shell=True, check=True)  # noqa: S602
    assert check(keys, secrets=[{"source": "keys"}], user=user) == []


def test_missing_key_file(tmp_path: Path) -> None:
    """A missing key file is a finding, unless none is configured; no chmod would help."""
    (finding,) = check(tmp_path / "none", secrets=[{"source": "keys"}])
    assert (finding.name, "chmod" in finding.remedy) == ("compose-secret", False)
    assert found(None, secrets=[{"source": "keys"}]) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"deploy": reserving(driver="nvidia", count=-1, capabilities=["gpu"])}, "asks for every GPU"),
        ({"deploy": reserving(driver="nvidia", count=2, capabilities=["gpu"])}, "asks for several GPUs"),
        ({"deploy": reserving(device_ids=["0", "1"], capabilities=["gpu"])}, "asks for several GPUs"),
        ({"deploy": reserving(driver="nvidia", count=-1, capabilities=["compute", "utility"])}, "every GPU"),
        ({"deploy": reserving(driver="nvidia", count=1, capabilities=["compute", "utility"])}, ""),
        ({"deploy": reserving(driver="nvidia", count=1, capabilities=["gpu", "utility"])}, "utility only; add compute"),
        ({"deploy": reserving(count=1, capabilities=["compute"])}, "compute only; add utility"),
        ({"deploy": reserving(driver="cdi", device_ids=["nvidia.com/gpu=0"])}, ""),
        ({"deploy": reserving(driver="other", capabilities=["tpu"])}, "reserves no GPU"),
        ({"deploy": None}, "reserves no GPU"),
        ({"deploy": None, "devices": [{"source": "nvidia.com/gpu=0"}]}, ""),
        ({"deploy": None, "devices": [{"source": "nvidia.com/gpu=all"}]}, "asks for every GPU"),
        ({"deploy": None, "runtime": "nvidia"}, "asks for every GPU"),
        (
            {"deploy": None, "runtime": "nvidia", "environment": {"SERVEKIT_MODEL": "", "NVIDIA_VISIBLE_DEVICES": "1"}},
            "",
        ),
        (
            {
                "deploy": None,
                "runtime": "nvidia",
                "environment": {"SERVEKIT_MODEL": "", "NVIDIA_VISIBLE_DEVICES": "void"},
            },
            "reserves no GPU",
        ),
        (
            {"environment": {"SERVEKIT_MODEL": "", "NVIDIA_DRIVER_CAPABILITIES": "compute"}},
            "the driver's compute only; add utility",
        ),
        ({"deploy": reserving(count=-1), "environment": {"SERVEKIT_MODEL": "", "CUDA_VISIBLE_DEVICES": "1"}}, "no GPU"),
        ({"deploy": None, "environment": {"SERVEKIT_TARGET": "cpu"}}, ""),
        ({"deploy": None, "build": {"args": {"ENGINE": "cpu"}}}, ""),
        ({"deploy": None, "image": "servekit:0.1.0-cpu"}, ""),
        ({"deploy": None, "image": "registry/cpu-only:1"}, ""),
    ],
)
def test_gpus_of_a_service(changes: dict[str, Any], told: str) -> None:
    """servekit needs one GPU with CUDA and NVML, in any of Docker's ways to ask for it; the image for the CPU none."""
    findings = check(**changes)
    assert [finding.name for finding in findings] == ["compose-gpus"] * bool(told)
    assert told in "".join(map(str, findings))


def test_every_gpu_of_a_host() -> None:
    """`count: all` is right on a host with one GPU, an error with several, a warning where nobody knows, or chosen."""
    every = reserving(driver="nvidia", count=-1, capabilities=["gpu"])
    severities = [[str(each.severity) for each in check(deploy=every, host_gpus=count)] for count in (1, 4, None)]
    assert severities == [[], ["error"], ["warning"]]
    chosen = {"SERVEKIT_MODEL": "", "CUDA_VISIBLE_DEVICES": "1"}
    assert check(deploy=every, host_gpus=4, environment=chosen) == []


def mounted(source: Path, target: str, **more: Any) -> dict[str, Any]:
    """Return a bind mount as Compose resolves it."""
    return {"type": "bind", "source": str(source), "target": target, **more}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of models with one in it."""
    model = tmp_path / "models/m"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md"):
        (model / name).touch()
    return model


@pytest.mark.parametrize(
    ("path", "mode", "told"),
    [
        ("", 0o755, ""),
        ("", 0o700, "cannot read {m} (got owner {owner}, mode 0700); run: sudo chmod -R a+rX {m}"),
        ("", 0o744, "cannot read {m} (got owner {owner}, mode 0744); run: sudo chmod -R a+rX {m}"),
        (
            "config.json",
            0o600,
            "cannot read {m}/config.json (got owner {owner}, mode 0600); run: sudo chmod -R a+rX {m}",
        ),
        ("README.md", 0o600, ""),
        ("..", 0o700, "cannot read {above} (got owner {owner}, mode 0700); run: sudo chmod a+x {above}"),
    ],
)
def test_model_that_the_container_cannot_read(model: Path, path: str, mode: int, told: str) -> None:
    """Weights that user 10001 cannot read are a warning with the command; another file beside them is none."""
    changed = (model / path).resolve()
    changed.chmod(mode)
    if os.geteuid() == 0:
        os.chown(changed, 1000, 1000)  # root's group is the group of the image's user
    owner = f"{changed.stat().st_uid}:{changed.stat().st_gid}"
    volumes = [mounted(model.parent, "/models", read_only=True)]
    environment = {"SERVEKIT_MODEL": "/models/m"}
    findings = check(environment=environment, volumes=volumes)
    expected = told.format(m=model, above=model.parent, owner=owner)
    assert [str(each.severity) for each in findings] == ["warning"] * bool(told)
    assert expected in "".join(map(str, findings))
    assert check(environment=environment, volumes=volumes, user="0:0") == []
    dropped = check(environment=environment, volumes=volumes, user="0:0", cap_drop=["ALL"])
    assert bool(dropped) is (bool(told) and os.geteuid() == 0), "root without capabilities is bound as anyone"
    changed.chmod(0o755)


def test_model_that_is_not_there(model: Path) -> None:
    """A path below no mount is a warning, a path that the mounted folder lacks is an error, a volume holds anything."""
    volumes = [mounted(model.parent, "/models")]
    elsewhere = check(environment={"SERVEKIT_MODEL": "/srv/m"}, volumes=volumes)
    assert [(each.name, str(each.severity)) for each in elsewhere] == [("compose-model", "warning")]
    assert "nothing is mounted at /srv/m" in elsewhere[0].message
    (absent,) = check(environment={"SERVEKIT_MODEL": "/models/n"}, volumes=volumes)
    assert (absent.name, str(absent.severity)) == ("compose-model", "error")
    assert str(model.parent / "n") in absent.message
    volume = {"type": "volume", "source": "models", "target": "/models"}
    assert check(environment={"SERVEKIT_MODEL": "/models/n"}, volumes=[volume]) == []


@pytest.mark.parametrize("target", ["/var/cache/servekit", "/var/lib/servekit", "/models"])
def test_folder_that_the_container_cannot_write(tmp_path: Path, target: str) -> None:
    """A bind mount that the endpoint writes to must be writable for its user; Docker creates it for root."""
    tmp_path.chmod(0o755)
    (finding,) = check(volumes=[mounted(tmp_path, target)])
    assert finding.name == "compose-mount"
    assert f"{target}: user 10001:0 of the container cannot write to {tmp_path}" in finding.message
    assert finding.remedy.startswith(f"run: sudo chown -R 10001 {tmp_path}")
    (finding,) = check(volumes=[mounted(tmp_path, target, read_only=True)])
    assert "is mounted read-only" in finding.message
    own = f"{os.geteuid()}:0"
    assert check(volumes=[mounted(tmp_path, target)], user=own) == []
    offline = {"SERVEKIT_MODEL": None, "HF_HUB_OFFLINE": "1"}
    assert bool(found(volumes=[mounted(tmp_path, target)], environment=offline)) is (target != "/models")
    assert found(volumes=[mounted(tmp_path, target)], user="a-name") == [], "only the image knows its numbers"
    tmp_path.chmod(0o777)
    assert check(volumes=[mounted(tmp_path, target)]) == []


def test_finding_has_the_line_of_its_key(tmp_path: Path) -> None:
    """A finding names the first Compose file with the service, and the line of the key or of the service."""
    other, path = tmp_path / "other.yaml", tmp_path / "compose.yaml"
    other.write_text("services:\n  caddy: {}\n")
    path.write_text("services:\n  servekit:\n    image: x\n    stop_grace_period: 1s\n")
    project = {"services": {"servekit": SERVICE | {"stop_grace_period": "1s"}}}
    (finding,) = check_project(project, compose=(2, 30), drain_s=60, margin_s=10, files=[path, other])
    assert str(finding).startswith(f"{path}:4: error: services.servekit.stop_grace_period: is 1 s")


def test_gpu_and_images() -> None:
    """A reservation or `gpus` requests a GPU; each image is listed once."""
    reserved = {"services": {"a": {"deploy": {"resources": {"reservations": {"devices": [DEVICE]}}}}}}
    assert reserves_gpu(reserved)
    assert reserves_gpu({"services": {"a": {"gpus": [{"count": -1}]}}})
    assert not reserves_gpu({"services": {"a": {"deploy": None}}})
    assert images_of({"services": {"a": SERVICE, "b": SERVICE, "c": {"build": "."}}}) == ("x:1",)


@pytest.mark.parametrize(("text", "seconds"), [("1m20s", 80), ("10s", 10), ("1h0m1s", 3601), ("500ms", 0.5)])
def test_durations(text: str, seconds: float) -> None:
    """Durations are parsed as Compose writes them."""
    assert seconds_of(text) == seconds


@needs_compose
def test_own_project_is_right(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped files, resolved by the real Compose, have no findings; they request a GPU except for the CPU."""
    monkeypatch.chdir(root)
    for files, gpu in (((), True), (("compose.yaml", "compose.cpu.yaml"), False)):
        project, findings = read_project([Path(name) for name in files])
        assert project is not None, findings
        assert check_project(project, compose=(2, 26), drain_s=60, margin_s=10) == []
        assert reserves_gpu(project) is gpu


@needs_compose
def test_what_compose_refuses_is_a_finding(tmp_path: Path) -> None:
    """A file that Compose rejects gives a finding with Compose's message."""
    path = tmp_path / "compose.yaml"
    path.write_text("services: 3\n")
    project, (finding,) = read_project([path])
    assert project is None
    assert "services" in finding.message
    assert finding.remedy == "correct the file"
