"""What the guard does with request bodies on the real engine: images, limits, fields that end the engine."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.body.fields import ROUTES
from tests.guard.conftest import GuardedEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

MAX_BODY_BYTES = 2 * 1024**2
CHAT = "/v1/chat/completions"


@pytest.fixture
def web_server() -> Iterator[tuple[str, list[str]]]:
    """A web server that records requests for its image."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def image_requests(url: str) -> list[tuple[str, dict[str, Any]]]:
    """The same image URL on each route that accepts images."""
    responses = {"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}]}
    messages = {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}
    chat = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    return [
        (CHAT, {"model": "demo", "max_tokens": 2, "messages": [chat]}),
        ("/v1/responses", {"model": "demo", "max_output_tokens": 2, "input": [responses]}),
        ("/v1/messages", {"model": "demo", "max_tokens": 2, "messages": [messages]}),
    ]


def test_an_image_in_the_request_is_served(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """Up to three images as data URLs work, and a fourth is refused by vLLM."""
    picture = requests.image(requests.png(64, 64))
    assert engine.request("POST", CHAT, requests.chat(*[picture] * 3)).status == 200
    assert engine.request("POST", CHAT, requests.chat(*[picture] * 4)).status == 400


@pytest.mark.advisory("CVE-2026-100650", "CVE-2026-130686")
def test_no_web_address_is_fetched(engine: GuardedEngine, web_server: tuple[str, list[str]]) -> None:
    """An http: image is refused with 400 on every route, and no request is made for it."""
    base, asked = web_server
    for path, body in image_requests(f"{base}/image.png"):
        response = engine.request("POST", path, body)
        assert (path, response.status) == (path, 400), response.data
        assert b"data:image" in response.data
    assert asked == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file://localhost/etc/passwd",
        "HTTP://127.0.0.1/",
        "https:\\\\127.0.0.1/",
        "ftp://127.0.0.1/x",
        "//127.0.0.1/x",
        "/etc/passwd",
        " data:image/png;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;utf8,AAAA",
        "data:image/png;base64,!!!!",
        "data:image/png;base64,AAAA",
        "data:,",
        "http://[::1",
    ],
)
def test_an_odd_image_url_is_a_bad_request(engine: GuardedEngine, url: str) -> None:
    """A data URL without a readable image is refused with 400, never with 500."""
    for path, body in image_requests(url):
        response = engine.request("POST", path, body)
        assert (path, response.status) == (path, 400), response.data


@pytest.mark.advisory("CVE-2026-100650", "CVE-2026-130686")
@pytest.mark.parametrize(("width", "height"), [(30000, 30000), (13300, 13300), (6000, 6000), (60000, 100)])
def test_a_pixel_bomb_is_refused_before_it_is_decoded(
    engine: GuardedEngine, requests: SimpleNamespace, width: int, height: int
) -> None:
    """A small file with a huge picture is refused with 400, and costs the server almost no memory."""
    bomb = requests.png(width, height)
    before = engine.resident_peak_bytes()
    response = engine.request("POST", CHAT, requests.chat(*[requests.image(bomb)] * 3))
    assert response.status == 400
    assert f"{width} x {height}".encode() in response.data or b"not a readable" in response.data
    assert engine.resident_peak_bytes() - before < 32 * 1024**2


@pytest.mark.advisory("CVE-2026-112398", "CVE-2026-112395", "CVE-2026-96637", "CVE-2026-55380", "CVE-2026-40192")
def test_only_web_formats_are_decoded(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """EPS and TIFF, which Pillow would open, are refused."""
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"II*\0\x08\0\0\0"):
        response = engine.request("POST", CHAT, requests.chat(requests.image(content)))
        assert response.status == 400
        assert b"PNG, JPEG, WEBP, GIF" in response.data


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 20), (2000, 100), (160, 8), (4000, 200), (5760, 5760)])
def test_an_image_of_any_allowed_shape_leaves_the_engine_alive(
    engine: GuardedEngine, requests: SimpleNamespace, width: int, height: int
) -> None:
    """Every shape within the limits is served, or refused with 400."""
    response = engine.request("POST", CHAT, requests.chat(requests.image(requests.png(width, height))))
    assert response.status in (200, 400), response.data
    assert engine.request("GET", "/health").status == 200


@pytest.mark.advisory("CVE-2026-116181", "CVE-2026-73559", "CVE-2026-34756")
@pytest.mark.advisory("CVE-2026-114053", "CVE-2026-116179", "CVE-2026-105758", "CVE-2026-105760")
@pytest.mark.advisory("CVE-2026-126396", "CVE-2026-114052")
@pytest.mark.parametrize(
    "fields",
    [
        {"mm_processor_kwargs": {"do_resize": False}},
        {"mm_processor_kwargs": {"max_soft_tokens": 1120}},
        {"media_io_kwargs": {"image": {"image_mode": "L"}}},
        {"stop_token_ids": [-5, 10**9], "min_tokens": 2},
        {"stop_token_ids": [1024], "min_tokens": 2},
        {"n": 16384},
    ],
)
def test_a_field_that_ends_the_engine_does_not_reach_it(
    engine: GuardedEngine, requests: SimpleNamespace, fields: dict[str, Any]
) -> None:
    """Each of these ended or blocked an unguarded vLLM 0.20.2; here it is 400, and the engine survives."""
    for path, body in (
        (CHAT, requests.chat(requests.image(requests.png(64, 64)), **fields)),
        ("/v1/completions", requests.completion(**fields)),
    ):
        response = engine.request("POST", path, body)
        unknown = not set(fields) <= set(ROUTES[path])  # vLLM ignores a field that the route does not have
        assert response.status == (200 if unknown else 400)
        assert unknown or response.json()["error"]["param"] in fields
    assert engine.request("POST", "/v1/completions", requests.completion()).status == 200


def test_a_body_over_the_limit_is_refused(engine: GuardedEngine) -> None:
    """A body over the limit is 413, which a client can read that sends it all, with a length or in chunks."""
    body = b" " * (MAX_BODY_BYTES + 1)
    before = engine.count(CHAT, "too_large")
    assert engine.request("POST", CHAT, body).status == 413
    length = str(10 * 1024**3).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + engine.key.encode()
    answer = engine.raw(head + b"\r\nContent-Length: " + length + b"\r\n\r\n{", timeout_s=1)
    assert answer.startswith(b"HTTP/1.1 413 ")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = engine.raw(head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 40, timeout_s=1)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert engine.count(CHAT, "too_large") == before + 3


def test_a_body_at_the_limit_is_accepted(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """A body of exactly the limit reaches vLLM."""
    body = json.dumps(requests.completion()).encode()
    body += b" " * (MAX_BODY_BYTES - len(body))
    assert engine.request("POST", "/v1/completions", body).status == 200


def test_endless_headers_are_cut_off(engine: GuardedEngine) -> None:
    """A connection with endless headers is closed at 64 KiB, and a slow one after ten seconds."""
    answer = engine.raw(b"GET /health HTTP/1.1\r\nX: " + b"a" * 1024**2, timeout_s=2)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    began = time.monotonic()
    engine.raw(b"GET /health HTTP/1.1\r\nX: a", timeout_s=120)
    assert 8 < time.monotonic() - began < 100


def test_a_full_server_says_when_to_retry(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """A request over the in-flight limit is 429 with Retry-After; servekit is still admitted; all slots are freed."""
    body = requests.completion(max_tokens=400, ignore_eos=True)
    with ThreadPoolExecutor(60) as pool:
        futures = [pool.submit(engine.request, "POST", "/v1/completions", body) for _ in range(60)]
        time.sleep(0.5)
        own = engine.request(
            "POST", "/v1/completions", requests.completion(max_tokens=1), key=False, headers=engine.guard.headers
        )
        answers = [future.result() for future in futures]
    assert own.status == 200
    assert {answer.status for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status == 429]
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert engine.counters()["in_flight"] == 0
