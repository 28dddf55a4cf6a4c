"""Which web pages may use the endpoint from a browser, with hand-made scopes."""

import json
from pathlib import Path
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.gate import Gate
from servekit.serve.guard.inside.servekit_guard.routes import CLIENT_ROUTES
from tests.guard.test_gate import BODY, CHAT, Upstream, counts, make_gate, make_scope, run

PAGE = "https://app.example.org"
LOCAL = "http://localhost:3000"
OTHERS = [b"https://evil.example.org", b"https://app.example.org.evil.org", b"null", b"", b"HTTPS://APP.EXAMPLE.ORG"]
OPENAI = (
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout,user-agent"
)
ANTHROPIC = "anthropic-dangerous-direct-browser-access, anthropic-version, Content-Type, X-API-Key, x-stainless-helper"


@pytest.fixture
def upstream() -> Upstream:
    """A stand-in for vLLM."""
    return Upstream()


@pytest.fixture
def gate(upstream: Upstream, key_file: Path) -> Gate:
    """A gate with two listed origins."""
    return make_gate(upstream, key_file, cors_origins=(PAGE, LOCAL))


def preflight(path: str, origin: bytes, method: bytes = b"POST", asked: str = OPENAI, **changes: Any) -> dict[str, Any]:
    """Return what a browser asks before it sends a request with a key."""
    headers = [
        (b"origin", origin),
        (b"access-control-request-method", method),
        (b"access-control-request-headers", asked.encode()),
    ]
    return make_scope(path, "OPTIONS", key=None, headers=headers, **changes)


@pytest.mark.parametrize("route", CLIENT_ROUTES, ids=lambda route: route.path)
@pytest.mark.parametrize("asked", [OPENAI, ANTHROPIC, ""])
def test_a_listed_page_may_send_what_clients_send(gate: Gate, upstream: Upstream, route: Any, asked: str) -> None:
    """A preflight needs no key, reaches nothing, and allows the method and the headers of OpenAI's and Anthropic's."""
    status, headers, body = run(gate, preflight(route.path, PAGE.encode(), route.method.encode(), asked))
    assert (status, body, upstream.seen) == (204, b"", [])
    assert headers[b"access-control-allow-origin"] == PAGE.encode()
    assert headers[b"access-control-allow-methods"] == route.method.encode()
    allowed = headers[b"access-control-allow-headers"].decode().split(", ")
    assert allowed == [name.strip().lower() for name in asked.split(",")]
    assert headers[b"vary"] == b"Origin"
    assert b"access-control-allow-credentials" not in headers
    assert counts(gate) == {(route.path, "preflight"): 1}


def test_a_page_may_not_send_other_headers(gate: Gate) -> None:
    """Headers that no client needs are left out of the answer, servekit's private token among them."""
    asked = "x-servekit-token,cookie,authorization,x-stainless-\u00e4,x-forwarded-for"
    _, headers, _ = run(gate, preflight(CHAT, PAGE.encode(), asked=asked))
    assert headers[b"access-control-allow-headers"] == b"authorization"


@pytest.mark.parametrize("origin", OTHERS)
def test_another_page_may_do_nothing(gate: Gate, upstream: Upstream, origin: bytes) -> None:
    """A preflight is 404 as without the setting, and an answer does not allow the page to read it."""
    status, headers, _ = run(gate, preflight(CHAT, origin))
    assert (status, headers[b"vary"]) == (404, b"Origin")
    assert not [name for name in headers if name.startswith(b"access-control-")]
    _, headers, _ = run(gate, make_scope("/v1/models", "GET", headers=[(b"origin", origin)]))
    assert not [name for name in headers if name.startswith(b"access-control-")]
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    "scope",
    [
        preflight("/metrics", PAGE.encode(), b"GET"),
        preflight(CHAT, PAGE.encode(), b"GET"),
        preflight(CHAT, PAGE.encode(), b"DELETE"),
        preflight("/_servekit/drain", PAGE.encode()),
        make_scope(CHAT, "OPTIONS", headers=[(b"origin", PAGE.encode())]),
        make_scope(CHAT, "OPTIONS", headers=[(b"origin", PAGE.encode())] * 2),
    ],
)
def test_only_a_clients_request_is_allowed(gate: Gate, upstream: Upstream, scope: dict[str, Any]) -> None:
    """A preflight for a closed route or another method, and an OPTIONS that is none, are 404."""
    assert run(gate, scope)[0] == 404
    assert upstream.seen == []


def test_a_page_can_read_answers_and_refusals(gate: Gate, upstream: Upstream) -> None:
    """vLLM's answer and the guard's 401, 404 and 413 allow the page, and expose the request's id."""
    origin = [(b"origin", LOCAL.encode())]
    answers = {
        200: run(gate, make_scope(headers=origin), BODY),
        401: run(gate, make_scope(headers=origin, key=None)),
        404: run(gate, make_scope("/nowhere", headers=origin)),
        413: run(gate, make_scope(headers=origin), b" " * 1001),
    }
    for expected, (status, headers, body) in answers.items():
        assert status == expected
        assert headers[b"access-control-allow-origin"] == LOCAL.encode()
        assert headers[b"access-control-expose-headers"] == b"x-request-id, retry-after"
        assert headers[b"vary"] == b"Origin"
        assert status == 200 or json.loads(body)["error"]["message"]
    assert len(upstream.seen) == 1


def test_no_page_is_allowed_by_default(upstream: Upstream, key_file: Path) -> None:
    """Without the setting OPTIONS is 404, and no answer has a header of CORS."""
    gate = make_gate(upstream, key_file)
    for scope in (preflight(CHAT, PAGE.encode()), make_scope(headers=[(b"origin", PAGE.encode())])):
        status, headers, _ = run(gate, scope, BODY)
        assert status == (404 if scope["method"] == "OPTIONS" else 200)
        assert not [name for name in headers if name.startswith(b"access-control-") or name == b"vary"]
