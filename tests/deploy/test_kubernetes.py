"""The Kubernetes manifests as kubectl renders them: valid, least rights, and no figure contradicts another."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from servekit import __version__
from servekit.serve.plan import STOP_MARGIN_S
from servekit.settings import Settings, variable_of
from tests.conftest import ROOT
from tests.deploy.test_scale import SCALE, shipped_flags

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
MINORS = ("1.34", "1.35", "1.36", "1.37")
CUSTOM = json.loads((Path(__file__).parent / "custom_kinds.json").read_text())
"""Kinds of operators, which Kubernetes' own schemas do not have: their shapes by version and kind."""

Manifests = dict[tuple[str, str], dict[str, Any]]


def render(overlay: str) -> Manifests:
    """Return what kubectl makes of an overlay, by kind and name without the hash of a generated name."""
    argv = [str(SCALE / "bin" / "kubectl"), "kustomize", "--load-restrictor=LoadRestrictionsNone"]
    made = subprocess.run([*argv, str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    found = list(yaml.safe_load_all(made.stdout))
    return {(each["kind"], re.sub(r"-[a-z0-9]{10}$", "", each["metadata"]["name"])): each for each in found}


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Each overlay."""
    return render(request.param)


def pods(manifests: Manifests) -> dict[str, dict[str, Any]]:
    """Return the pod templates by the name of what makes them."""
    return {
        name: each["spec"]["template"]
        for (kind, name), each in manifests.items()
        if kind in {"StatefulSet", "Deployment"}
    }


def versioned(manifest: Mapping[str, Any]) -> str:
    """Return version and kind."""
    return f"{manifest['apiVersion']} {manifest['kind']}"


@pytest.mark.parametrize("minor", MINORS)
def test_valid(manifests: Manifests, minor: str, tmp_path: Path) -> None:
    """Every manifest fits the schemas of the last four minor versions, strictly."""
    own = [each for each in manifests.values() if versioned(each) not in CUSTOM]
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(own))
    argv = [str(SCALE / "bin" / "kubernetes-validate"), "--strict", "--kubernetes-version", minor, str(file)]
    made = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr


def test_an_error_is_noticed(tmp_path: Path) -> None:
    """The validator refuses a field that does not exist."""
    wrong = render("one")["StatefulSet", "servekit"]
    wrong["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"] = {"rest": {"seconds": 5}}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(wrong))
    argv = [str(SCALE / "bin" / "kubernetes-validate"), "--strict", "--kubernetes-version", MINORS[-1], str(file)]
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0


def test_operators_kinds() -> None:
    """PodMonitors, rules and the ScaledObject fit their operators' own definitions, which refuse an unknown field."""
    found = [each for each in render("observability").values() if versioned(each) in CUSTOM]
    assert {each["kind"] for each in found} == {"PodMonitor", "PrometheusRule", "ScaledObject"}
    for each in found:
        jsonschema.validate(each, CUSTOM[versioned(each)])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**each, "spec": {**each["spec"], "targets": 1}}, CUSTOM[versioned(each)])


def one_line(value: object) -> str:
    """Return a value without differences in white space, which kubectl changes in long expressions."""
    return " ".join(re.sub(r"\\n", " ", json.dumps(value, sort_keys=True)).split())


def test_the_same_rules_everywhere() -> None:
    """Kubernetes has the recording rules and alerts of Compose, for the jobs that its PodMonitors make."""
    manifests = render("observability")
    files = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    rendered = manifests["PrometheusRule", "servekit"]["spec"]["groups"]
    assert one_line(rendered) == one_line(groups)
    jobs = set(re.findall(r'job="([^"]+)"', json.dumps(groups).replace("\\", "")))
    assert jobs == {"servekit", "router"}
    labels = manifests["StatefulSet", "servekit"]["spec"]["template"]["metadata"]["labels"]
    assert labels[manifests["PodMonitor", "servekit"]["spec"]["jobLabel"]] == "servekit"


def test_one_kind_a_file() -> None:
    """Each file has one manifest."""
    for file in FOLDER.rglob("*.yaml"):
        assert len(list(yaml.safe_load_all(file.read_text()))) == 1, file


def test_least_rights(manifests: Manifests) -> None:
    """No container runs as root, writes its root file system or has a capability; only the router gets a token."""
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["enableServiceLinks"] is False, name
        assert spec.get("automountServiceAccountToken", True) is (name == "servekit-gateway"), name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert container["resources"]["limits"]["memory"], name
    for (kind, name), role in manifests.items():
        assert kind not in {"ClusterRole", "ClusterRoleBinding"}, name
        if kind == "Role":
            assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]


def test_selectors_select(manifests: Manifests) -> None:
    """Whatever selects pods by labels selects those of one template, and each selects the one it is for."""
    templates = {name: pod["metadata"]["labels"].items() for name, pod in pods(manifests).items()}
    for (kind, name), each in manifests.items():
        spec = each.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector:
            labels = selector.get("matchLabels", selector)
            found = [template for template, has in templates.items() if labels.items() <= has]
            assert found, (kind, name)
            assert len(found) == 1 or name == "servekit-metrics", (kind, name)
    if ("Service", "servekit") in manifests:
        ports = {
            port["name"] for pod in pods(manifests).values() for c in pod["spec"]["containers"] for port in c["ports"]
        }
        for (kind, _), each in manifests.items():
            if kind == "Service":
                assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports


def secrets(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a pod reads of Secrets: each name, and whether it is optional."""
    refs = [env.get("valueFrom", {}).get("secretKeyRef") for c in spec["containers"] for env in c.get("env", [])]
    volumes = [each["secret"] for each in spec["volumes"] if "secret" in each]
    return [ref for ref in refs if ref] + [{"name": each["secretName"], **each} for each in volumes]


def test_what_is_named_exists(manifests: Manifests) -> None:
    """Every ConfigMap, volume and account that a pod names is there; secrets are the operator's to make."""
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        claims = manifests.get(("StatefulSet", name), {"spec": {}})["spec"].get("volumeClaimTemplates", [])
        volumes = {each["name"] for each in spec["volumes"]} | {each["metadata"]["name"] for each in claims}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
        text = json.dumps(spec)
        generated = {each["metadata"]["name"] for (kind, _), each in manifests.items() if kind == "ConfigMap"}
        assert set(re.findall(r'"configMap(?:Ref)?": {"name": "([^"]+)"', text)) <= generated
        needed = [ref["name"] for ref in secrets(spec) if not ref.get("optional")]
        assert needed == (["servekit-keys"] if name == "servekit" else []), "README.md makes no other"
        if account := spec.get("serviceAccountName"):
            assert ("ServiceAccount", account) in manifests


def test_figures_fit() -> None:
    """Drain, grace, preStop, probes, ports, user, memory and image agree with servekit, the Dockerfile and Compose."""
    manifests = render("replicas")
    spec = manifests["StatefulSet", "servekit"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    settings = manifests["ConfigMap", "servekit-settings"]["data"]
    drain_s = int(settings["SERVEKIT_DRAIN_S"])
    assert drain_s == Settings.model_fields["drain_s"].default
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > before_s + drain_s + STOP_MARGIN_S
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    for probe in probes.values():
        assert probe["httpGet"]["path"] in {"/livez", "/readyz"}
        assert "initialDelaySeconds" not in probe
    readiness, liveness = probes["readiness"], probes["liveness"]
    assert readiness["failureThreshold"] * readiness["periodSeconds"] <= before_s, (
        "it leaves the Service before it drains"
    )
    assert liveness["failureThreshold"] * liveness["periodSeconds"] >= Settings.model_fields["silent_s"].default
    image = (ROOT / "Dockerfile").read_text()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"api": 8000, "observe": 9400}
    assert f"EXPOSE {ports['api']} {ports['observe']}" in image
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in image
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["servekit"]
    assert container["image"] == f"servekit:{__version__}"
    assert f"-{container['resources']['limits']['memory'].removesuffix('Gi')}g}}" in compose["mem_limit"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/models", "/var/cache/servekit", "/var/lib/servekit", "/tmp", "/etc/servekit/vllm_config.yaml"} <= mounted  # noqa: S108
    variables = {variable_of(name) for name in Settings.model_fields}
    assert {name for name in settings if name.startswith("SERVEKIT_")} <= variables
    assert {each["name"] for each in container["env"]} <= {*variables, "HF_TOKEN"}
    profile = manifests["ConfigMap", "servekit-profile"]["data"]["vllm_config.yaml"]
    assert profile == (ROOT / "vllm_config.yaml").read_text()


def test_the_router_is_the_same_everywhere() -> None:
    """Kubernetes and Compose give the router the same limits; on Kubernetes it listens on the pod's loopback only."""
    containers = pods(render("replicas"))["servekit-gateway"]["spec"]["containers"]
    gateway, router = containers
    flags = dict(each[2:].partition("=")[::2] for each in router["args"] if each.startswith("--"))
    words = shipped_flags()
    shared = dict(zip((each[2:] for each in words[::2]), words[1::2], strict=True))
    only_compose = {"worker-startup-timeout-secs", "worker-startup-check-interval"}
    assert {name: flags[name] for name in shared.keys() - only_compose} == {
        name: value for name, value in shared.items() if name not in only_compose
    }
    assert flags["host"] == "127.0.0.1"
    assert {each["name"]: each["value"] for each in gateway["env"]}["ROUTER"] == f"127.0.0.1:{flags['port']}"
    version = re.search(r"vllm-router==(\S+)", (ROOT / "requirements" / "router.in").read_text())
    assert version
    assert router["image"] == f"servekit-router:{version[1]}"
    compose = (ROOT / "compose.scale.yaml").read_text()
    assert f"servekit-router:{version[1]}}}" in compose
    caddy = re.search(r"CADDY_IMAGE:-(\S+)}", compose)
    assert caddy
    assert gateway["image"] == caddy[1]
