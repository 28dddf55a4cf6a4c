"""Replicas behind the real router and the real Caddy; a replica is a real uvicorn, the guard and a stand-in vLLM."""

import http.client
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from servekit.serve.guard import DRAIN_PATH
from tests.conftest import KEY, ROOT, find_free_port, wait_until
from tests.deploy.test_proxies import running
from tests.guard.test_wire import TOKEN, Wire, serving

pytestmark = pytest.mark.engine

SCALE = ROOT / ".venv-scale"
KEYED = {"Authorization": f"Bearer {KEY}"}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
COMPLETION = {"model": "demo", "prompt": "x", "max_tokens": 4}
OPEN = {("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("HEAD", "/v1/models")}
"""What a client with a key can reach; without one, /health alone."""
HEALTH = {("GET", "/health"), ("HEAD", "/health")}


@dataclass
class Door:
    """Two replicas, the router, and Caddy before it."""

    folder: Path
    port: int
    router: int
    replicas: list[Wire]
    things: ExitStack
    router_things: ExitStack = field(default_factory=ExitStack)
    metrics: int = field(default_factory=find_free_port)

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None, port: int = 0
    ) -> tuple[int, bytes]:
        """Send one request exactly as it is written, to the door or another port."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=60)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def start_router(self) -> None:
        """Start the router with the flags of compose.scale.yaml."""
        urls = [f"http://127.0.0.1:{replica.port}" for replica in self.replicas]
        ports = ["--host=127.0.0.1", f"--port={self.router}", f"--prometheus-port={self.metrics}"]
        argv = [str(SCALE / "bin" / "vllm-router"), *ports, "--worker-urls", *urls, *shipped_flags()]
        self.router_things.enter_context(running(argv, self.folder / "router.log"))
        wait_until(lambda: self.ready() is not None, what="the router")

    def ready(self) -> dict[str, object] | None:
        """Return what the router says about its replicas, if it answers and has any."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.router}/readiness", timeout=60) as answer:
                found: dict[str, object] = json.load(answer)
        except (OSError, http.client.HTTPException):
            return None
        return found

    def workers(self) -> list[str]:
        """Return the replicas that the router knows."""
        found = json.loads(self.ask("GET", "/list_workers", port=self.router)[1])["urls"]
        return sorted(str(url) for url in found)


def shipped_flags() -> list[str]:
    """Return the router's flags in compose.scale.yaml but its addresses, as a shell splits them."""
    compose = yaml.safe_load(re.sub(r"!(reset|override)", "", (ROOT / "compose.scale.yaml").read_text()))
    (script,) = compose["services"]["router"]["command"]
    words = subprocess.run(
        ["/bin/bash", "-ec", script.replace("exec /opt/router/bin/vllm-router", "printf '%s\\n'").replace("$$", "$")],
        env={"PATH": os.environ["PATH"], "REPLICAS": "observability,2", "POLICY": "round_robin"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert words[words.index("--worker-urls") + 1 :][:3] == [
        "http://servekit-1:8000",
        "http://servekit-2:8000",
        "--policy",
    ]
    return words[words.index("--policy") :]


@contextmanager
def opened(folder: Path) -> Iterator[Door]:
    """Run the replicas, the router and Caddy."""
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("needs caddy: apt-get install caddy")
    with ExitStack() as things, ExitStack() as router_things:
        replicas = []
        for number in range(2):
            (folder / str(number)).mkdir()
            replicas.append(things.enter_context(serving(folder / str(number))))
        door = Door(folder, find_free_port(), find_free_port(), replicas, things, router_things)
        door.start_router()
        own = {"GATEWAY_SITE": f"http://127.0.0.1:{door.port}", "ROUTER": f"127.0.0.1:{door.router}"}
        own |= {name: str(folder) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME")}
        config = str(ROOT / "deploy" / "caddy" / "Caddyfile.scale")
        things.enter_context(
            running([program, "run", "--config", config, "--adapter", "caddyfile"], folder / "caddy.log", **own)
        )
        wait_until(lambda: b"serving initial configuration" in (folder / "caddy.log").read_bytes(), what="Caddy")
        yield door


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Replicas that nobody harms."""
    with opened(tmp_path_factory.mktemp("door")) as found:
        yield found


def paths_of_the_router() -> set[str]:
    """Every route of the router, from its program, where they stand one after the other without an end to each."""
    (library,) = (SCALE / "lib").glob("python3*/site-packages/vllm_router_rs*.so")
    written = re.search(rb"[a-z0-9_/{}]*/add_worker/remove_worker[a-z0-9_/{}]*", library.read_bytes())
    assert written
    segments = re.sub(r"{\w+}", "x", written[0].decode()).strip("/").split("/")
    slices = {"/".join(segments[at : at + count]) for at in range(len(segments)) for count in (1, 2, 3)}
    paths = {f"/{path}" for path in slices}
    assert {"/v1/responses", "/list_workers", "/flush_cache"} <= paths
    return paths | {"/", "/docs", "/openapi.json", "/metrics", "/_servekit/counters"}


@pytest.mark.parametrize("headers", [{}, KEYED], ids=["without-a-key", "with-a-key"])
def test_only_what_is_allowed_is_open(door: Door, headers: dict[str, str]) -> None:
    """Of all routes that the router's program names, its administration included, only the listed ones are reached."""
    paths = paths_of_the_router() | {path for _, path in OPEN | HEALTH}
    seen: dict[tuple[str, str], int] = {}
    for path in sorted(paths):
        for method in ("GET", "POST"):
            body = (COMPLETION if "chat" not in path else CHAT) if method == "POST" else None
            if (method, path) != ("POST", "/v1/chat/completions"):  # the stand-in streams for ever there
                seen[method, path] = door.ask(method, path, body, headers)[0]
    reached = {route for route, status in seen.items() if status != 404}
    assert reached == {route for route in OPEN | HEALTH if route[0] != "HEAD" and "chat" not in route[1]}
    assert {seen[route] for route in reached - HEALTH} == {200 if headers else 401}
    assert seen["GET", "/health"] == 200
    assert len(door.workers()) == 2


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../list_workers",
        "//list_workers",
        "/v1/models/%2e%2e/%2e%2e/list_workers",
        "/v1/models?url=http://127.0.0.1:1",
        "/%6cist_workers",
        "/list_workers/",
        "/list_workers/../v1/models",
        "//v1//models",
        "/v1/models%3f/../../list_workers",
        "/v1/models/",
        "/V1/MODELS",
        "/health/../list_workers",
        "/health?x=/list_workers",
        "/v1/completions/../../add_worker?url=http://127.0.0.1:1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "OPTIONS"])
def test_no_spelling_reaches_the_administration(door: Door, method: str, path: str) -> None:
    """However a path is written, no answer comes from the router's administration, and its list stays the same."""
    status, data = door.ask(method, path, COMPLETION if method == "POST" else None)
    assert status in {200, 401, 404, 405}
    assert b"urls" not in data
    assert b"http://127" not in data
    assert status != 200 or "health" in path
    assert len(door.workers()) == 2


def test_the_key_and_the_request_arrive(door: Door) -> None:
    """The guard of a replica gets the client's key and its id; a token that claims to be servekit's is dropped."""
    headers = {"X-Request-Id": "mine", "X-Servekit-Token": TOKEN, "X-Api-Key": "other"}
    status, data = door.ask(
        "POST", "/v1/completions", COMPLETION | {"top_k": 64, "prompt_logprobs": 1}, KEYED | headers
    )
    assert status == 200
    given = json.loads(data)
    assert COMPLETION.items() <= json.loads(given["body"]).items()
    assert json.loads(given["body"])["top_k"] == 64
    names = dict(given["headers"])
    assert "x-servekit-token" not in names
    assert names["x-request-id"].startswith("mine-")
    assert door.ask("POST", "/v1/completions", COMPLETION, {"Authorization": "Bearer wrong"})[0] == 401
    assert KEY.encode() not in (door.folder / "caddy.log").read_bytes() + (door.folder / "router.log").read_bytes()


def served(replica: Wire) -> int:
    """Return how many completions a replica was given."""
    rows = replica.counters()["requests"]
    return sum(row["count"] for row in rows if (row["route"], row["outcome"]) == ("/v1/completions", "allowed"))


def test_requests_are_spread(door: Door) -> None:
    """Requests go to both replicas by turns."""
    before = [served(replica) for replica in door.replicas]
    answers = Counter(door.ask("POST", "/v1/completions", COMPLETION, KEYED)[0] for _ in range(20))
    assert answers == {200: 20}
    assert [served(replica) - was for replica, was in zip(door.replicas, before, strict=True)] == [10, 10]


def test_the_alerts_read_what_the_router_exports(door: Door) -> None:
    """Every series of the router in the alerts is one that it has, with the labels that they join on."""
    door.ask("POST", "/v1/completions", COMPLETION, KEYED)
    page = door.ask("GET", "/metrics", port=door.metrics)[1].decode()
    alerts = (ROOT / "deploy" / "prometheus" / "rules" / "alerts.yml").read_text()
    wanted = set(re.findall(r"vllm_router_\w+", alerts))
    assert len(wanted) == 2
    for name in wanted:
        assert f'{name}{{worker="http://127.0.0.1:' in page


def test_a_drain_and_a_death_lose_no_request(tmp_path: Path) -> None:
    """A replica that drains is left at once, a dead one too, a router restarted meanwhile serves; no request fails."""
    with opened(tmp_path) as door:
        first, second = door.replicas
        drained = door.ask("POST", DRAIN_PATH, {}, {"X-Servekit-Token": TOKEN}, first.port)
        assert drained[0] == 200
        assert door.ask("GET", "/health", port=first.port)[0] == 503
        answers = Counter(door.ask("POST", "/v1/completions", COMPLETION, KEYED)[0] for _ in range(30))
        assert answers == {200: 30}
        wait_until(lambda: (door.ready() or {}).get("healthy_workers") == 1, what="the drained replica out of rotation")
        assert door.ask("GET", "/health")[0] == 200
        door.router_things.close()
        assert door.ask("POST", "/v1/completions", COMPLETION, KEYED)[0] == 502
        door.start_router()
        answers = Counter(door.ask("POST", "/v1/completions", COMPLETION, KEYED)[0] for _ in range(30))
        assert answers == {200: 30}
        assert served(second) >= 60
        os.kill(second.pid, 9)
        wait_until(lambda: door.ask("GET", "/health")[0] == 503, what="no replica left")
        assert door.ask("POST", "/v1/completions", COMPLETION, KEYED)[0] == 503
