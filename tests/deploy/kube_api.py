"""A stand-in for what the router's discovery uses of Kubernetes' API: list and watch the pods of a namespace."""

import copy
import http.server
import json
import queue
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

LABELS = {"app.kubernetes.io/name": "servekit", "app.kubernetes.io/component": "endpoint"}


class KubeApi(http.server.ThreadingHTTPServer):
    """Pods by name; whoever watches hears of each change unless it is missed on purpose."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pods: dict[str, dict[str, Any]] = {}
        self.version = 1
        self.watchers: list[queue.SimpleQueue[dict[str, Any]]] = []
        self.lock = threading.Lock()

    def kubeconfig(self, path: Path) -> Path:
        """Write a configuration for this server."""
        entry = {"server": f"http://127.0.0.1:{self.server_port}"}
        context = {"cluster": "c", "user": "u", "namespace": "llm"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": entry}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": context}],
            "current-context": "x",
        }
        path.write_text(json.dumps(config))
        return path

    def put(self, name: str, address: str, *, ready: bool = True, deleting: bool = False, without: str = "") -> None:
        """Add or change a pod, as an API server reports it, `without` one of its labels."""
        with self.lock:
            self.version += 1
            own = {key: value for key, value in LABELS.items() if key != without}
            meta: dict[str, Any] = {"name": name, "namespace": "llm", "labels": own, "uid": name}
            meta["resourceVersion"] = str(self.version)
            if deleting:
                meta["deletionTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            status = {
                "phase": "Running",
                "podIP": address,
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            }
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": []}, "status": status}
            had, has = name in self.pods, LABELS.items() <= own.items()
            last = self.pods.get(name, pod)
            if has:
                self.pods[name] = pod
            else:
                self.pods.pop(name, None)
            # A watcher with a selector hears that a pod which no longer fits is DELETED.
            self._tell(("MODIFIED" if had else "ADDED") if has else "DELETED", pod if has else last)

    def remove(self, name: str, *, missed: bool = False) -> None:
        """Delete a pod by force; `missed`: no watcher ever hears of it."""
        with self.lock:
            self.version += 1
            pod = self.pods.pop(name)
            if not missed:
                self._tell("DELETED", pod)

    def _tell(self, kind: str, pod: dict[str, Any]) -> None:
        for watcher in self.watchers:
            watcher.put({"type": kind, "object": copy.deepcopy(pod)})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KubeApi

    def do_GET(self) -> None:
        """Answer a list, or a watch until its connection ends."""
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        if query.get("watch") in {"true", "1"}:
            self._watch()
            return
        with self.server.lock:
            meta = {"resourceVersion": str(self.server.version)}
            found = {"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": list(self.server.pods.values())}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self) -> None:
        mine: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self.server.lock:
            self.server.watchers.append(mine)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while True:
                line = json.dumps(mine.get()).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""
