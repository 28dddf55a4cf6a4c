"""servekit's own HTTP server: probes, status, metrics, a page; on a port of its own, answered from a snapshot."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry

from servekit.errors import Finding, PreflightError
from servekit.observe.metrics import exposition
from servekit.observe.page import CONTENT_SECURITY_POLICY, render_page
from servekit.serve.plan import Plan
from servekit.serve.status import State, StatusStore
from servekit.thread_pool import ThreadPool

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_ACCEPTED_S = "servekit.accepted_s"
"""The monotonic second at which the connection of a request was taken."""
_KEPT_WORKERS = 8
"""Probes, a scrape or two and a page at once."""
_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"
_HTML = "text/html; charset=utf-8"
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


class Endpoints:
    """What each path answers, as values: (HTTP status line, content type, body)."""

    def __init__(
        self,
        plan: Plan,
        board: StatusStore,
        registry: CollectorRegistry,
        read_engine_metrics: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._board = board
        self._registry = registry
        self._read_engine_metrics = read_engine_metrics
        self._clock = clock
        self._routes: dict[str, Callable[[], tuple[str, str, bytes]]] = {
            "/livez": self._live,
            "/readyz": self._ready,
            "/status": self._status,
            "/metrics": self._metrics,
            "/": self._page,
        }

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        status, content_type, body = self.answer(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        served_ms = 1000 * (time.monotonic() - environ.get(_ACCEPTED_S, time.monotonic()))
        headers = [
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            # How long servekit took, for whoever wonders whether a late answer was late here.
            ("Server-Timing", f"servekit;dur={served_ms:.3f}"),
            *_HEADERS,
        ]
        start_response(status, headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def answer(self, method: str, path: str) -> tuple[str, str, bytes]:
        """Return what `path` answers now."""
        if method not in {"GET", "HEAD"}:
            return "405 Method Not Allowed", _TEXT, b"only GET\n"
        route = self._routes.get(path)
        if route is None:
            return "404 Not Found", _TEXT, f"not here; there are {' '.join(self._routes)}\n".encode()
        return route()

    def _live(self) -> tuple[str, str, bytes]:
        status = self._board.read()
        line = "200 OK" if status.alive else "503 Service Unavailable"
        return line, _TEXT, f"{status.state}: {status.reason}\n".encode()

    def _ready(self) -> tuple[str, str, bytes]:
        status = self._board.read()
        if status.state is State.READY:
            return "200 OK", _TEXT, b"ready\n"
        phase = f" ({status.phase})" if status.phase else ""
        return "503 Service Unavailable", _TEXT, f"{status.state}{phase}: {status.reason}\n".encode()

    def _status(self) -> tuple[str, str, bytes]:
        status = self._board.read()
        now = self._clock()
        body = {
            "state": status.state,
            "ready": status.state is State.READY,
            "reason": status.reason,
            "phase": status.phase,
            "exit_code": status.exit_code,
            "served_name": self._plan.served_name,
            "endpoint": f"{self._plan.url}/v1",
            "engine_pid": status.engine_pid,
            "start_seconds": round(status.start_seconds(now), 3),
            "start_phases": [
                {"phase": span.phase, "seconds": round(span.seconds, 3), "running": span.running}
                for span in status.timeline(now)
            ],
            "transitions": [
                {"time": change.time_s, "state": change.state, "reason": change.reason} for change in status.transitions
            ],
            "contract": [
                {"item": item.name, "wanted": item.wanted, "got": item.got, "met": item.met} for item in status.contract
            ],
            "plan": self._plan.describe(),
        }
        return "200 OK", _JSON, json.dumps(body, indent=2, default=str).encode() + b"\n"

    def _metrics(self) -> tuple[str, str, bytes]:
        return (
            "200 OK",
            CONTENT_TYPE_PLAIN_0_0_4,
            exposition(self._registry, self._read_engine_metrics),
        )

    def _page(self) -> tuple[str, str, bytes]:
        page = render_page(self._plan, self._board.read(), now=self._clock(), wall_s=time.time())
        return "200 OK", _HTML, page


class Server:
    """The endpoints on a socket, in threads; `url` says where (port 0: one the system chose)."""

    def __init__(self, application: Endpoints, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = type("_Bound", (_Server,), {"address_family": family})
        try:
            self._server: WSGIServer = make_server(host, port, application, bound, _QuietHandler)
        except OSError as error:
            finding = Finding(
                f"servekit's own server cannot listen here: {error.strerror}",
                f"{host}:{port}",
                remedy="choose another --observe-host or --observe-port, or stop what listens there",
            )
            raise PreflightError([finding]) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="observe", daemon=True)

    @property
    def url(self) -> str:
        """The base address of the server."""
        host, port = self._server.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}"

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer no more and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(WSGIServer):
    # A probe every second must not find the backlog full behind a slow scrape.
    request_queue_size = 1024
    # Also right after a restart, while connections of the last run linger; never beside a living listener.
    allow_reuse_address = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.accepted_s: dict[int, float] = {}
        self._workers = ThreadPool(_KEPT_WORKERS)
        super().__init__(*arguments, **named)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection, and note when: before a thread is there that answers on it."""
        connection, address = super().get_request()
        self.accepted_s[connection.fileno()] = time.monotonic()
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a worker."""
        self._workers.run(lambda: self._answer(request, client_address))

    def server_close(self) -> None:
        """Close the port, and let the workers go."""
        super().server_close()
        self._workers.close()

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001 - whatever it is, it is this connection's alone
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # an idle client gives its thread back
    server: _Server
    wbufsize = 64 * 1024  # status, headers and body go out together: no half an answer when the process ends

    def get_environ(self) -> "WSGIEnvironment":
        """Hand the time of the connection on."""
        accepted_s = self.server.accepted_s.pop(self.connection.fileno())
        return super().get_environ() | {_ACCEPTED_S: accepted_s}

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing: probes come every second."""
