"""Published vulnerabilities that a route, a setting or vLLM's own check closes, on the real engine."""

import base64
import re
from types import SimpleNamespace
from typing import Any

import pytest

from servekit.profile import resolve
from servekit.serve.watch.running_contract import ContractItem, compare_contract
from tests.guard.conftest import GuardedEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
CLOSED_ROUTES = [
    *("/inference/v1/generate", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank", "/tokenize"),
    *("/derender", "/v1/chat/completions/derender", "/v1/completions/derender"),
]
ADDRESS = re.compile(rb"0x[0-9a-fA-F]{4,}")


def is_alive(engine: GuardedEngine, requests: SimpleNamespace) -> bool:
    """Return whether the engine still answers."""
    return engine.request("POST", COMPLETIONS, requests.completion()).status == 200


@pytest.mark.advisory("CVE-2026-114051", "CVE-2026-105754", "CVE-2026-105755", "CVE-2026-71486")
@pytest.mark.advisory("CVE-2026-114053", "CVE-2026-116179", "CVE-2026-105758")  # of these, what needs /tokenize
@pytest.mark.advisory("CVE-2026-105760", "CVE-2026-126396", "CVE-2026-114052")
@pytest.mark.parametrize("path", CLOSED_ROUTES)
def test_a_vulnerable_route_is_closed(engine: GuardedEngine, path: str) -> None:
    """A client with a key gets 404 from the guard, whatever it sends."""
    body = {"model": "demo", "prompt": "a", "token_ids": [2], "sampling_params": {"max_tokens": 1, "min_tokens": 9}}
    before = engine.count("other", "not_found")
    assert engine.request("POST", path, body).status == 404
    assert engine.count("other", "not_found") == before + 1


@pytest.mark.advisory("CVE-2026-48746", "CVE-2026-48710", "PYSEC-2026-248")
@pytest.mark.parametrize("host", ["x/?a=", "x/health?", "x/v1/../health#", "health", "x:y/health?a=b"])
def test_the_host_header_opens_no_route(engine: GuardedEngine, host: str) -> None:
    """The URL that could be built from the header changes nothing: 401 without a key, 404 for a closed route."""
    for target, with_key, wanted in (("/v1/models", False, 401), ("/metrics", False, 404), ("/metrics", True, 404)):
        key = f"Authorization: Bearer {engine.key}\r\n" if with_key else ""
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{key}Connection: close\r\n\r\n"
        status = int(engine.raw(head.encode()).split(b" ")[1])
        assert status in {wanted, 400}, (target, status)


@pytest.mark.advisory("CVE-2026-114051", "CVE-2026-105754", "PYSEC-2026-4353")
def test_more_tokens_at_least_than_at_most(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """`min_tokens` above `max_tokens` is 400 on the routes that accept it, and the engine survives."""
    for path, body in (
        (CHAT, requests.chat(min_tokens=9)),
        (CHAT, requests.chat(min_tokens=9, max_completion_tokens=3)),
        (COMPLETIONS, requests.completion(min_tokens=9)),
        (COMPLETIONS, requests.completion(min_tokens=4000, max_tokens=3999)),
    ):
        response = engine.request("POST", path, body)
        assert (path, response.status) == (path, 400), response.data
    assert is_alive(engine, requests)


@pytest.mark.advisory("CVE-2026-73559", "CVE-2026-34756")
@pytest.mark.parametrize(
    "fields", [{"n": 257}, {"n": 16384}, {"prompt": ["a"] * 129, "n": 2}, {"prompt": [[2]] * 257}, {"n": 2**63 - 1}]
)
def test_the_sequences_of_a_request_are_bounded(
    engine: GuardedEngine, requests: SimpleNamespace, fields: dict[str, Any]
) -> None:
    """More than 256 prompts times `n` are 400, and none of them starts."""
    response = engine.request("POST", COMPLETIONS, requests.completion(temperature=1, **fields))
    assert response.status == 400
    assert is_alive(engine, requests)


@pytest.mark.advisory("CVE-2026-44222")
@pytest.mark.parametrize("text", ["<|image|>", "<|image>", "<image|>", "<|image><|image|><image|>", "<|image|>" * 300])
def test_image_tokens_spelt_in_a_text(engine: GuardedEngine, requests: SimpleNamespace, text: str) -> None:
    """A text that spells out image tokens, without an image, is answered or 400, and the engine survives."""
    message = [{"role": "user", "content": text}]
    for path, body in (
        (CHAT, {"model": "demo", "max_tokens": 2, "messages": message}),
        (COMPLETIONS, requests.completion(prompt=text)),
        (RESPONSES, {"model": "demo", "max_output_tokens": 2, "input": text}),
        (MESSAGES, {"model": "demo", "max_tokens": 2, "messages": message}),
    ):
        response = engine.request("POST", path, body)
        assert response.status in {200, 400}, (path, response.data)
    assert is_alive(engine, requests)


@pytest.mark.advisory("CVE-2026-54236")
def test_no_error_holds_an_address(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """No error about an image or a field, on any route, contains an address of the server's memory."""
    picture = requests.png(8, 8)
    broken = [picture[:40], picture[:50] + bytes(20), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(30)]
    broken += [b"GIF89a" + bytes(9), b"RIFF\x1a\0\0\0WEBPVP8 " + bytes(14), b"not an image"]
    seen = set()
    for data in broken:
        encoded = base64.b64encode(data).decode()
        block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded}}
        url = f"data:image/png;base64,{encoded}"
        for path, body in (
            (CHAT, requests.chat(requests.image(data))),
            (RESPONSES, responses([{"type": "input_image", "image_url": url, "detail": "auto"}])),
            (MESSAGES, messages([block])),
        ):
            seen.add(status_without_address(engine, path, body))
    wrong: list[dict[str, Any]] = [{"messages": {}}, {"max_tokens": "x"}, {"tools": 1}, {"stop": [[]]}]
    for fields in wrong:
        seen |= {status_without_address(engine, path, messages([]) | fields) for path in (CHAT, MESSAGES)}
    assert 400 in seen
    assert seen <= {200, 400}
    assert is_alive(engine, requests)


def status_without_address(engine: GuardedEngine, path: str, body: dict[str, Any]) -> int:
    """Return the status of an answer, which must contain no address."""
    response = engine.request("POST", path, body)
    assert not ADDRESS.search(response.data), (path, response.data)
    return response.status


def messages(content: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a small request in Anthropic's form."""
    return {"model": "demo", "max_tokens": 2, "messages": [{"role": "user", "content": content}]}


def responses(content: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a small request for `/v1/responses`."""
    return {"model": "demo", "max_output_tokens": 2, "input": [{"role": "user", "content": content}]}


@pytest.mark.advisory("CVE-2026-73557", "PYSEC-2026-2303", "vllm#57719")
def test_embeddings_in_a_request_are_refused(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """`prompt_embeds` is 400, alone and with a prompt, and is never loaded."""
    data = base64.b64encode(b"PK\x03\x04" + bytes(64)).decode()
    for fields in ({"prompt_embeds": data}, {"prompt_embeds": [data]}, {"prompt_embeds": data, "prompt": None}):
        assert engine.request("POST", COMPLETIONS, requests.completion(**fields)).status == 400
    assert is_alive(engine, requests)


@pytest.mark.advisory("CVE-2026-73557", "PYSEC-2026-2303", "vllm#57719")
@pytest.mark.advisory("CVE-2026-105756", "CVE-2026-94626", "CVE-2026-116176", "CVE-2026-116180", "CVE-2026-115912")
@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("enable-prompt-embeds", True),
        ("enable-mm-embeds", True),
        ("mm-processor-cache-type", "shm"),
        ("kv-transfer-config", "KVTransferConfig(kv_connector='NixlConnector')"),
    ],
)
def test_a_vulnerable_part_is_off_and_must_be(engine: GuardedEngine, key: str, other: object) -> None:
    """The running engine reports each of them as off; a different report, or none, breaks the contract."""
    effective = engine.effective()
    name = key.replace("-", "_")
    assert item(key, effective).met
    assert not item(key, effective | {name: other}).met
    assert not item(key, {each: value for each, value in effective.items() if each != name}).met


def item(key: str, effective: dict[str, Any]) -> ContractItem:
    """Return one item of the contract as an engine with this configuration meets it."""
    return next(each for each in compare_contract(resolve({}, target="cpu"), "demo", effective) if each.name == key)
