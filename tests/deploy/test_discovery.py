"""The router's discovery of pods, with the flags of the manifest and a stand-in for Kubernetes' API."""

import contextlib
import http.server
import json
import os
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import find_free_port, wait_until
from tests.deploy.kube_api import KubeApi
from tests.deploy.test_kubernetes import pods, render
from tests.deploy.test_proxies import running
from tests.deploy.test_scale import SCALE


class Replica(http.server.ThreadingHTTPServer):
    """A replica at an address of its own, which says its name."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, port: int) -> None:
        super().__init__((address, port), _Answer)
        self.address, self.healthy = address, True
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def die(self) -> None:
        """Close the port."""
        self.shutdown()
        self.server_close()


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Replica

    def do_GET(self) -> None:
        """Answer the health check."""
        self._say(200 if self.server.healthy else 503)

    def do_POST(self) -> None:
        """Answer a request."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._say(200 if self.server.healthy else 503)

    def _say(self, status: int) -> None:
        body = json.dumps({"address": self.server.address}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@dataclass
class Cluster:
    """The API, the router, and two replicas at the same port of two addresses."""

    api: KubeApi
    url: str
    port: int
    replicas: dict[str, Replica] = field(default_factory=dict)

    def start(self, name: str, address: str) -> Replica:
        """Start a replica and announce its pod as ready."""
        self.replicas[name] = Replica(address, self.port)
        self.api.put(name, address)
        return self.replicas[name]

    def served_by(self, count: int = 6) -> Counter[str]:
        """Send requests; count who answered, or the status of an error."""
        seen: Counter[str] = Counter()
        for _ in range(count):
            body = json.dumps({"model": "m", "prompt": "x"}).encode()
            request = urllib.request.Request(
                f"{self.url}/v1/completions", body, {"Content-Type": "application/json"}, method="POST"
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    seen[json.load(answer)["address"]] += 1
            except urllib.error.HTTPError as error:
                seen[str(error.code)] += 1
        return seen

    def until_served_by(self, *addresses: str) -> None:
        """Wait until exactly these replicas answer."""
        wait_until(lambda: set(self.served_by()) == set(addresses), what=f"requests served by {addresses}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without pods."""
    _, router = pods(render("replicas"))["servekit-gateway"]["spec"]["containers"]
    port, own, metrics = (find_free_port() for _ in range(3))
    changed = {
        "--port": str(own),
        "--prometheus-host": "127.0.0.1",
        "--prometheus-port": str(metrics),
        "--service-discovery-namespace": "llm",
        "--service-discovery-port": str(port),
    }
    flags = []
    for each in router["args"]:
        name, _, value = each.partition("=")
        flags.append(f"{name}={changed.get(name, value)}" if value else each)
    with ExitStack() as things:
        api = things.enter_context(KubeApi())
        threading.Thread(target=api.serve_forever, args=(0.05,), daemon=True).start()
        config = api.kubeconfig(tmp_path / "kubeconfig")
        environ = {"KUBECONFIG": str(config), "PATH": os.environ["PATH"]}
        log = tmp_path / "router.log"
        things.enter_context(running([str(SCALE / "bin" / "vllm-router"), *flags], log, **environ))
        made = Cluster(api, f"http://127.0.0.1:{own}", port)

        def up() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{made.url}/liveness", timeout=60):
                return bool(api.watchers)
            return False

        wait_until(up, what=f"the router ({log})")
        yield made
        api.shutdown()
        for replica in made.replicas.values():
            replica.die()


def test_a_ready_pod_is_served_and_a_deleted_one_is_not(cluster: Cluster) -> None:
    """Ready is routable; a deletion that begins, a lost label, and a drain behind a green pod all end that."""
    assert set(cluster.served_by(1)) == {"503"}
    cluster.start("servekit-0", "127.0.0.2")
    cluster.until_served_by("127.0.0.2")
    second = cluster.start("servekit-1", "127.0.0.3")
    cluster.until_served_by("127.0.0.2", "127.0.0.3")
    cluster.api.put("servekit-0", "127.0.0.2", deleting=True)
    cluster.until_served_by("127.0.0.3")
    second.healthy = False  # what the guard says from the first moment of a drain; the pod is still Ready
    cluster.until_served_by("503")
    second.healthy = True
    cluster.until_served_by("127.0.0.3")


def test_a_pod_that_vanishes_gets_no_request(cluster: Cluster) -> None:
    """A pod deleted by force, and one whose deletion nobody heard of, get nothing once they do not answer."""
    for name, address in (("servekit-0", "127.0.0.2"), ("servekit-1", "127.0.0.3"), ("servekit-2", "127.0.0.4")):
        cluster.start(name, address)
    cluster.until_served_by("127.0.0.2", "127.0.0.3", "127.0.0.4")
    cluster.replicas.pop("servekit-0").die()
    cluster.api.remove("servekit-0")
    cluster.until_served_by("127.0.0.3", "127.0.0.4")
    cluster.replicas.pop("servekit-1").die()
    cluster.api.remove("servekit-1", missed=True)
    cluster.until_served_by("127.0.0.4")
    assert cluster.served_by(20) == {"127.0.0.4": 20}


def test_a_pod_that_loses_its_label(cluster: Cluster) -> None:
    """The router keeps it (docs/scale.md says so), until its /health says 503."""
    cluster.start("servekit-0", "127.0.0.2")
    second = cluster.start("servekit-1", "127.0.0.3")
    cluster.until_served_by("127.0.0.2", "127.0.0.3")
    cluster.api.put("servekit-1", "127.0.0.3", without="app.kubernetes.io/component")
    cluster.start("servekit-2", "127.0.0.4")  # once this one serves, the router has heard of the label too
    wait_until(lambda: "127.0.0.4" in cluster.served_by(), what="the newest replica")
    assert set(cluster.served_by(9)) == {"127.0.0.2", "127.0.0.3", "127.0.0.4"}
    second.healthy = False
    cluster.until_served_by("127.0.0.2", "127.0.0.4")
