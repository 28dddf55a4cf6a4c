"""A small server with servekit's /status and /metrics, whose counters move with each request for work."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOAD = """
import signal, sys, time, urllib.request
signal.signal(signal.SIGINT, signal.SIG_DFL)
for _ in range(int(sys.argv[2])):
    urllib.request.urlopen(sys.argv[1] + "/work").read()
time.sleep(float(sys.argv[3]))
sys.exit(int(sys.argv[4]))
"""
"""A load: so many requests at a URL, then seconds of waiting, then an exit code."""
TOKENS, PROMPT = 7, 3
"""Of each request."""


class Site(ThreadingHTTPServer):
    """The server; `status` and `extra` are what it reports, besides its counters."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.requests = 0
        self.in_flight = 0
        self.status: dict[str, Any] = {
            "state": "ready",
            "ready": True,
            "engine_pid": None,
            "endpoint": "http://127.0.0.1:8000/v1",
            "served_name": "m",
            "contract": [{"item": "quantization", "wanted": "w4a16", "got": "w4a16", "met": True}],
            "plan": {"target": "cuda", "profile": "vllm_config.yaml", "model": "m", "argv": ["vllm", "serve", "m"]},
        }
        self.extra = 'servekit_build_info{engine_version="0.20.2",version="0.1.0"} 1.0\n'
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def page(self) -> str:
        """Return the metrics page."""
        return (
            f"{self.extra}"
            "process_start_time_seconds 1.7e+09\n"
            f'vllm:generation_tokens_total{{engine="0"}} {TOKENS * self.requests}.0\n'
            f'vllm:prompt_tokens_total{{engine="0"}} {PROMPT * self.requests}.0\n'
            f'vllm:request_success_total{{engine="0",finished_reason="length"}} {self.requests}.0\n'
            f'vllm:num_requests_running{{engine="0"}} {self.in_flight}.0\n'
            'vllm:num_requests_waiting{engine="0"} 0.0\n'
        )


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        if self.path == "/work":
            with self.server.lock:
                self.server.requests += 1
        found = {"/status": json.dumps(self.server.status), "/metrics": self.server.page(), "/work": "done"}
        body = found.get(self.path, "").encode()
        self.send_response(200 if self.path in found else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def running_site() -> Iterator[Site]:
    """Serve until the end of the block."""
    with Site() as site:
        threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield site
        site.shutdown()
