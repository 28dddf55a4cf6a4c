"""What runs beside the endpoint: an internal network, Caddy in front, Prometheus behind."""

from collections.abc import Callable

import httpx
import openai
import pytest

from servekit.demo.build import build_demo_model
from tests.conftest import find_free_port, wait_until
from tests.container.stack import CPU_FILES, Stack
from tests.deploy.dashboard import expressions, rules
from tests.deploy.prometheus import FOLDER, alerts, ask, rule_errors
from tests.deploy.test_dashboard import DASHBOARD
from tests.deploy.visitors import with_load, without_data

MODEL = "demo"
OUTSIDE = """
import socket
for address in (("192.0.2.1", 443), ("example.org", 443)):
    try:
        socket.create_connection(address, timeout=3)
        print("reached", address)
    except OSError as error:
        print(type(error).__name__, error.errno)
"""


@pytest.fixture(scope="module")
def offline(make_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A tenant in an internal network, its weights mounted, Caddy in front of it."""
    models = tmp_path_factory.mktemp("models")
    build_demo_model(models / MODEL)
    models.chmod(0o755)
    (models / MODEL).chmod(0o755)
    made = make_stack(
        "offline",
        files=(*CPU_FILES, "compose.offline.yaml"),
        ENDPOINT_MODELS=str(models),
        SERVEKIT_MODEL=f"/models/{MODEL}",
        CADDY_HTTP=str(find_free_port()),
        CADDY_HTTPS=str(find_free_port()),
    )
    made.compose("--profile", "tls", "up", "--detach", "--wait")
    return made


def test_no_way_out(offline: Stack) -> None:
    """Mounted weights are served without a network: the container reaches nothing, and publishes no port."""
    assert "reached" not in offline.python(OUTSIDE)
    settings = offline.container.attrs["NetworkSettings"]
    assert not any(settings["Ports"].values())
    (network,) = settings["Networks"].values()
    with openai.OpenAI(base_url=f"http://{network['IPAddress']}:8000/v1", api_key=offline.key()) as client:
        assert client.completions.create(model=MODEL, prompt="Hello", max_tokens=4).usage


def test_caddy_in_front(offline: Stack) -> None:
    """Caddy serves the endpoint over HTTPS and gives nothing away without the key or on servekit's own routes."""
    (caddy,) = offline.containers("caddy")
    port = int(caddy.attrs["NetworkSettings"]["Ports"]["443/tcp"][0]["HostPort"])
    with httpx.Client(base_url=f"https://localhost:{port}", verify=False) as https:  # noqa: S501 - its own authority
        wait_until(lambda: _answers(https), within_s=30, what="Caddy's certificate")
        assert https.get("/v1/models").status_code == 401
        assert https.get("/status").status_code == 404
        assert https.get("/metrics").status_code == 404
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 4}
        answer = https.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {offline.key()}"})
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 4


def _answers(https: httpx.Client) -> bool:
    try:
        return https.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_prometheus_of_the_profile(healthy: Stack) -> None:
    """Prometheus in its container scrapes the endpoint in another: every panel and every recording rule has data."""
    healthy.compose("--profile", "observability", "up", "--detach", "prometheus")
    url = f"http://127.0.0.1:{healthy.prometheus_port}"
    wait_until(lambda: _up(url), within_s=60, what="the target")
    every = [each for each in (*rules(FOLDER / "rules"), *expressions(DASHBOARD)) if each.by_default]
    wanted = [each for each in every if not each.needs_nvml]
    with_load(healthy.url, healthy.key(), lambda: without_data(url, wanted), within_s=150)
    assert rule_errors(url) == {}
    assert "firing" not in alerts(url).values()


def _up(url: str) -> bool:
    try:
        return [each["value"] for each in ask(url, 'up{job="servekit"}')] == [1]
    except (OSError, ValueError):  # not up yet, or up and still reading its own data
        return False
