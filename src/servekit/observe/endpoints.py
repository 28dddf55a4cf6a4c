"""servekit's own HTTP server, on a separate port: probes, status, metrics and a page, all from a snapshot."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry

from servekit.errors import PreflightError
from servekit.observe.metrics import exposition
from servekit.observe.page import CONTENT_SECURITY_POLICY, render_page
from servekit.serve.plan import Plan
from servekit.serve.start_check import unobservable
from servekit.serve.status import State, StatusStore
from servekit.thread_pool import ThreadPool

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_ACCEPTED_S = "servekit.accepted_s"
"""The monotonic second at which the connection of a request was accepted."""
_KEPT_WORKERS = 8
"""Enough for the probes, a scrape or two and a page at the same time."""
_MOST_CONNECTIONS = 64
"""The most threads, too. Beyond it the oldest connection is cut: usually one that sends nothing, never a new probe."""
_OK, _UNAVAILABLE = "200 OK", "503 Service Unavailable"
_TEXT = "text/plain; charset=utf-8"
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)

Answer = tuple[str, str, bytes]
"""HTTP status line, content type and body."""


class Endpoints:
    """A WSGI application; each path returns an `Answer`."""

    def __init__(
        self,
        plan: Plan,
        store: StatusStore,
        registry: CollectorRegistry,
        read_engine_metrics: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._store = store
        self._registry = registry
        self._read_engine_metrics = read_engine_metrics
        self._clock = clock
        self._routes: dict[str, Callable[[], Answer]] = {
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
        fixed = [("Content-Type", content_type), ("Content-Length", str(len(body))), *_HEADERS]
        # Lets clients tell servekit's own latency from queueing elsewhere.
        start_response(status, [*fixed, ("Server-Timing", f"servekit;dur={served_ms:.3f}")])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def answer(self, method: str, path: str) -> Answer:
        """Return the current answer of `path`."""
        if method not in {"GET", "HEAD"}:
            return "405 Method Not Allowed", _TEXT, b"only GET and HEAD are allowed\n"
        if path not in self._routes:
            return "404 Not Found", _TEXT, f"not found; the paths are {' '.join(self._routes)}\n".encode()
        return self._routes[path]()

    def _live(self) -> Answer:
        status = self._store.read()
        # Alive until servekit is about to end with a failure: until then a restart would not help.
        return (
            _UNAVAILABLE if status.state is State.FAILED else _OK,
            _TEXT,
            f"{status.state}: {status.reason}\n".encode(),
        )

    def _ready(self) -> Answer:
        status = self._store.read()
        if status.state is State.READY:
            return _OK, _TEXT, b"ready\n"
        phase = f" ({status.phase})" if status.phase else ""
        return _UNAVAILABLE, _TEXT, f"{status.state}{phase}: {status.detail}\n".encode()

    def _status(self) -> Answer:
        status, now = self._store.read(), self._clock()
        body = {
            "state": status.state,
            "ready": status.state is State.READY,
            "reason": status.reason,
            "phase": status.phase,
            "exit_code": status.exit_code,
            "served_name": self._plan.served_name,
            "endpoint": f"{self._plan.url}/v1",
            "commit": status.commit,
            "engine_pid": status.engine_pid,
            "start_seconds": round(status.start_seconds(now), 3),
            "start_phases": [
                {"phase": phase, "seconds": round(seconds, 3), "running": phase is status.phase}
                for phase, seconds in status.timeline(now).items()
            ],
            "download": status.download
            and {
                "bytes": status.download.bytes,
                "total_bytes": status.download.total,
                "verified_bytes": status.download.verified,
                "bytes_per_s": round(status.download.bytes_per_s),
                "seconds_left": status.download.seconds_left,
                "problem": status.download.problem,
            },
            "transitions": [
                {"time": change.time_s, "state": change.state, "reason": change.reason} for change in status.transitions
            ],
            "contract": [
                {"item": item.name, "wanted": item.wanted, "got": item.got, "met": item.met} for item in status.contract
            ],
            "plan": self._plan.describe(),
        }
        return _OK, "application/json", json.dumps(body, indent=2, default=str).encode() + b"\n"

    def _metrics(self) -> Answer:
        return _OK, CONTENT_TYPE_PLAIN_0_0_4, exposition(self._registry, self._read_engine_metrics)

    def _page(self) -> Answer:
        page = render_page(self._plan, self._store.read(), now=self._clock(), wall_s=time.time())
        return _OK, "text/html; charset=utf-8", page


class Server(WSGIServer):
    """The endpoints on a socket, in threads; with port 0 the system chooses one, which `url` holds."""

    # A probe every second must not find the backlog full behind a slow scrape.
    request_queue_size = 1024
    # Binds right after a restart too, while connections of the last run linger; never beside a live listener.
    allow_reuse_address = True

    def __init__(self, application: Endpoints, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.accepted_s: dict[Any, float] = {}
        """When each open connection was accepted, the oldest first."""
        self._workers = ThreadPool(_KEPT_WORKERS, _MOST_CONNECTIONS)
        try:
            super().__init__((host, port), _QuietHandler)
        except OSError as error:
            raise PreflightError([unobservable(host, port, error)]) from error
        self.set_app(application)

    def server_bind(self) -> None:
        """Bind without asking DNS for the host's name, as HTTPServer does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    @property
    def url(self) -> str:
        """The base address of the server."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}"

    def __enter__(self) -> Self:
        """Start to answer."""
        threading.Thread(target=self.serve_forever, args=(0.1,), name="observe", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop answering, free the port and end the workers."""
        self.shutdown()
        self.server_close()
        self._workers.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a worker; record first when the connection was accepted, and cut the oldest of too many."""
        if self._workers.waiting >= _MOST_CONNECTIONS:  # every thread waits for the engine
            self.shutdown_request(request)
            return
        if len(self.accepted_s) >= _MOST_CONNECTIONS and (oldest := next(iter([*self.accepted_s]), None)):
            self.accepted_s.pop(oldest, None)
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # ends the read that its worker waits in
        self.accepted_s[request] = time.monotonic()
        self._workers.run(lambda: self._answer(request, client_address))

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # a client that sends nothing or has hung up
        except Exception:  # an error must end only its own connection
            logging.getLogger(__name__).exception("cannot answer a request")
        finally:
            self.accepted_s.pop(request, None)
            self.shutdown_request(request)


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds, so that an idle client does not keep its thread
    server: Server
    wbufsize = 64 * 1024  # status, headers and body go out together: no answer is cut when the process ends

    def get_environ(self) -> "WSGIEnvironment":
        """Add the time at which the connection was accepted."""
        return super().get_environ() | {_ACCEPTED_S: self.server.accepted_s.get(self.connection, time.monotonic())}

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: probes come every second."""
