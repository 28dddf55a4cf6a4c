"""A real browser with a page of another origin: which of the endpoint's answers it gives to the page."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import KEY
from tests.guard.test_wire import serving

if TYPE_CHECKING:
    from tests.harness.browser import Browser

pytestmark = pytest.mark.engine

OPENAI = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "x-stainless-lang": "js"}
ANTHROPIC = {
    "x-api-key": KEY,
    "content-type": "application/json",
    "anthropic-version": "2023-06-01",
    "anthropic-dangerous-direct-browser-access": "true",
}
BODY = json.dumps({"model": "m", "input": "x", "messages": [{"role": "user", "content": "x"}]})


class Page(http.server.BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        """Send it."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def page() -> Iterator[str]:
    """Serve the page; yields its origin."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def post(browser: "Browser", url: str, headers: dict[str, str]) -> Any:
    """Let the page send a request; return the status and the request's id, or what the page is told instead."""
    options = json.dumps({"method": "POST", "headers": headers, "body": BODY})
    read = "async (answer) => (await answer.text(), [answer.status, answer.headers.get('x-request-id')])"
    return browser.ask(f"fetch({json.dumps(url)}, {options}).then({read}, (error) => String(error))")


@pytest.mark.parametrize(
    ("path", "headers"), [("/v1/responses", OPENAI), ("/v1/messages", ANTHROPIC)], ids=["openai", "anthropic"]
)
def test_a_listed_page_reads_answers(browser: "Browser", tmp_path: Path, path: str, headers: dict[str, str]) -> None:
    """The browser lets a listed page read a stream, an answer and a 401, and gives another page nothing."""
    if path == "/v1/responses":
        headers = headers | {"x-request-id": "own"}
    with page() as listed, page() as other, serving(tmp_path, cors_origins=(listed,)) as wire:
        url = f"http://127.0.0.1:{wire.port}{path}"
        browser.open(listed)
        status, request_id = post(browser, url, headers)
        assert (status, bool(request_id)) == (200, True)
        unkeyed = {name: value for name, value in headers.items() if KEY not in value}
        assert post(browser, url, unkeyed)[0] == 401
        browser.open(other)
        assert post(browser, url, headers) == "TypeError: Failed to fetch"
        assert [row["outcome"] for row in wire.counters()["requests"] if row["route"] == path].count("allowed") == 1
        assert wire.count("preflight") >= 1
        browser.console()
