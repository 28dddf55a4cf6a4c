"""Which routes of the running engine answer which client."""

import pytest

from tests.guard.conftest import GuardedEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PUBLIC = {("/health", "GET"), ("/health", "HEAD")}
CLIENT = {
    ("/v1/models", "GET"),
    ("/v1/models", "HEAD"),
    ("/v1/models/name:path", "GET"),
    ("/v1/models/name:path", "HEAD"),
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/messages", "POST"),
    ("/v1/messages/count_tokens", "POST"),
}
KNOWN = """
/detokenize /docs /docs/oauth2-redirect /generative_scoring /health /inference/v1/generate /invocations
/is_scaling_elastic_ep /load /metrics /openapi.json /ping /redoc /scale_elastic_ep /tokenize
/v1/chat/completions /v1/chat/completions/batch /v1/chat/completions/render /v1/completions
/v1/completions/render /v1/messages /v1/messages/count_tokens /v1/models /v1/models/{name:path} /v1/responses
/v1/responses/{response_id} /v1/responses/{response_id}/cancel /version
"""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def addresses(engine: GuardedEngine) -> list[tuple[str, str]]:
    """Every path of the engine's own route table with every method, path parameters filled in."""
    paths = {route["path"].replace("{", "").replace("}", "") for route in engine.effective()["routes"]}
    assert "/invocations" in paths
    return sorted((path, method) for path in paths for method in METHODS)


def test_the_guard_is_outermost(engine: GuardedEngine) -> None:
    """No part of vLLM gets a request before the guard."""
    assert engine.effective()["middleware"][0] == "servekit_guard.entry.Guard"


def test_nothing_is_missing_from_the_effective_configuration(engine: GuardedEngine) -> None:
    """Every value that servekit checks the contract with exists in vLLM 0.20.2."""
    effective = engine.effective()
    assert effective["missing"] == []
    assert effective["limit_mm_per_prompt"] == {"image": 3, "audio": 0, "video": 0}
    assert effective["kv_cache_dtype"] == "auto"
    assert effective["max_num_seqs"] == 32
    assert effective["quantization"] == "compressed-tensors"
    assert effective["attention_backend"] == "TRITON_ATTN"
    assert effective["structured_outputs_backend"] == "guidance"
    assert effective["served_model_names"] == ["demo"]
    assert effective["media_redirects"] is False
    assert effective["api_server_count"] == 1


def test_the_engine_has_no_route_we_do_not_know(engine: GuardedEngine) -> None:
    """A vLLM with a different route table fails here, so that someone decides about the new route."""
    assert {route["path"] for route in engine.effective()["routes"]} == set(KNOWN.split())


def test_without_a_key_only_health_answers(engine: GuardedEngine) -> None:
    """Each route of the table with each method is 401 or 404, except the public one."""
    for path, method in addresses(engine):
        response = engine.request(method, path, key=False)
        expected = 200 if (path, method) in PUBLIC else 401 if (path, method) in CLIENT else 404
        assert (path, method, response.status) == (path, method, expected)


def test_with_a_key_only_the_allowlist_answers(engine: GuardedEngine) -> None:
    """Each other route of the table is 404 for a client with a valid key too."""
    for path, method in addresses(engine):
        body: dict[str, str] | None = {} if method == "POST" else None
        response = engine.request(method, path.replace("name:path", "demo"), body)
        reached = (path, method) in PUBLIC | CLIENT
        assert (path, method, response.status != 404) == (path, method, reached)


def test_servekit_itself_reaches_metrics(engine: GuardedEngine) -> None:
    """The private token gives access to vLLM's metrics, and a client's key does not."""
    assert b"vllm:num_requests_running" in engine.request("GET", "/metrics", headers=engine.guard.headers).data
    assert engine.request("GET", "/metrics").status == 404
    assert engine.request("GET", "/metrics", headers={"x-servekit-token": "x" * 43}).status == 404


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models",
        "/v1/models/",
        "/v1/../invocations",
        "/v1/%2e%2e/metrics",
        "/v1%2fmodels",
        "/V1/models",
        "/v1/models;a=b",
        "/v1/models%00",
        "/v1//models",
        "/./v1/models",
        "/%76%31/models",
        "/health/../metrics",
        "http://127.0.0.1/metrics",
        "/metrics?x=/health",
        "/metrics#/health",
        "*",
        "/",
    ],
)
def test_an_odd_path_is_not_found(engine: GuardedEngine, target: str) -> None:
    """A path that differs from an allowed one in any character is 404, or invalid HTTP, even with a key."""
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {engine.key}\r\nConnection: close\r\n\r\n"
    status = engine.raw(request.encode()).split(b" ")[1]
    assert status in (b"404", b"400")


def test_a_websocket_is_refused(engine: GuardedEngine) -> None:
    """An upgrade to a websocket is answered with 404 and never accepted."""
    answer = engine.raw(
        b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Authorization: Bearer " + engine.key.encode() + b"\r\n\r\n",
        timeout_s=2,
    )
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(("path", "method"), sorted(CLIENT))
def test_a_wrong_key_is_refused(engine: GuardedEngine, path: str, method: str) -> None:
    """A key that is not in the file, two keys, or the key in another form is 401."""
    for header in ("Bearer sk-servekit-wrong-wrong-wrong", f"Basic {engine.key}", engine.key, "Bearer", ""):
        response = engine.request(method, path, key=False, headers={"authorization": header})
        assert response.status == 401
        assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
