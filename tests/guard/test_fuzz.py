"""Thousands of malformed and odd requests on the real engine: it lives on, and no slot is lost."""

import json
import random
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.guard.conftest import GuardedEngine, chat, completion, image, png

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

RAW_REQUESTS = 5000
BODIES = 2000
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")

ODD_NUMBERS = [0, -1, 1, 2, 0.5, -0.5, 1e-30, 1e30, 2**31, 2**63, -(2**63), 2**70, float("nan"), float("inf")]
ODD_TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "\U0001d54f" * 50,
    "<|image|>",
    "<eos>",
    "a" * 5000,
    "{{ 7*7 }}",
    "../../etc/passwd",
]
ODD_VALUES: list[Any] = [*ODD_NUMBERS, *ODD_TEXTS, None, True, [], {}, [[]], [None], {"a": {}}, [-1], [10**9], ["a", 1]]
FIELDS = """
model messages prompt input max_tokens max_completion_tokens max_output_tokens temperature top_p top_k min_p n
best_of stream stop seed logprobs top_logprobs prompt_logprobs echo suffix frequency_penalty presence_penalty
repetition_penalty length_penalty min_tokens ignore_eos stop_token_ids include_stop_str_in_output bad_words
allowed_token_ids logit_bias skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
add_special_tokens add_generation_prompt continue_final_message documents chat_template chat_template_kwargs tools
tool_choice parallel_tool_calls response_format priority request_id return_tokens_as_token_ids
return_token_ids cache_salt kv_transfer_params vllm_xargs user metadata store background previous_response_id
instructions include reasoning reasoning_effort truncation text system thinking mm_processor_kwargs media_io_kwargs
stream_options use_beam_search logits_processors prompt_embeds repetition_detection data_parallel_rank
"""


def test_malformed_http_does_no_harm(engine: GuardedEngine) -> None:
    """Broken request lines, headers, lengths and chunks, with and without the key: refused or dropped."""
    chaos = random.Random(1)
    requests = [malformed(chaos, engine.key) for _ in range(RAW_REQUESTS)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: send_and_close(engine.port, data), requests))
    statuses = Counter(answer[9:12] for answer in answers)
    assert sum(statuses.values()) == RAW_REQUESTS
    assert not {status for status in statuses if status.startswith(b"5")}, statuses
    assert statuses[b"404"] > 100, statuses
    assert statuses[b"401"] > 5, statuses
    assert_unharmed(engine)


def test_odd_bodies_do_no_harm(engine: GuardedEngine, eventually: Callable[..., None]) -> None:
    """Every field with every odd value on every route: an answer, never a 500 nor the engine's end."""
    chaos = random.Random(2)
    bodies = [(chaos.choice(PATHS), odd_body(chaos)) for _ in range(BODIES)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda request: post(engine, *request), bodies))
    failed = [(path, body) for (path, body), status in zip(bodies, statuses, strict=True) if status >= 500]
    assert Counter(statuses)[200] > 50, Counter(statuses)
    assert Counter(statuses)[400] > 50, Counter(statuses)
    assert not failed, (Counter(statuses), [(path, body[:400]) for path, body in failed[:20]])
    eventually(lambda: engine.counters()["in_flight"] == 0, within_s=20)
    assert_unharmed(engine)


def assert_unharmed(engine: GuardedEngine) -> None:
    """The engine answers, and the guard holds nothing."""
    counters = engine.counters()
    assert (counters["in_flight"], counters["buffered_bytes"]) == (0, 0)
    assert engine.request("GET", "/health").status == 200
    assert engine.request("POST", "/v1/completions", completion()).status == 200


def post(engine: GuardedEngine, path: str, body: bytes) -> int:
    """Send a body on a connection of its own and return the status."""
    return engine.request("POST", path, body, headers={"connection": "close"}, timeout_s=100).status


def odd_body(chaos: random.Random) -> bytes:
    """A plausible request with one to three odd fields, or bytes that are no JSON."""
    if chaos.random() < 0.1:
        return chaos.choice([b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 5000, chaos.randbytes(50), b'"x"'])
    base: dict[str, Any] = chaos.choice(
        [
            chat(),
            completion(),
            chat(image(png(chaos.randint(1, 200), chaos.randint(1, 200)))),
            {"model": "demo", "input": "hello", "max_output_tokens": 4},
            {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]},
        ]
    )
    odd = {field: chaos.choice(ODD_VALUES) for field in chaos.sample(FIELDS.split(), chaos.randint(1, 3))}
    return json.dumps(base | {"max_tokens": 4} | odd).encode()


def malformed(chaos: random.Random, key: str) -> bytes:
    """A request that is broken, odd, or ordinary with a byte or two changed."""
    method = chaos.choice(["GET", "POST", "HEAD", "OPTIONS", "PUT", "get", "BREW", "", "G\0T", "CONNECT", "PRI"])
    path = chaos.choice(
        [*PATHS, "/v1/models", "/health", "/metrics", "/invocations", "//", "*", "", "/%", "/\xff", "/" + "a" * 9000]
    )
    version = chaos.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", "", "HTTP/1.1\r"])
    headers = chaos.sample(
        [
            "Host: x",
            f"Authorization: Bearer {key}",
            "Authorization: Bearer",
            "Authorization: Bearer " + "x" * 5000,
            "Content-Length: 10",
            "Content-Length: -1",
            "Content-Length: 99999999999999999999999",
            "Content-Length: 5, 5",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked, identity",
            "Content-Type: application/json",
            "Expect: 100-continue",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Connection: close",
            "X-Servekit-Token: x",
            "X-Forwarded-For: 127.0.0.1",
            " folded: header",
            "no colon at all",
            "Bad\x00Name: x",
            ": empty",
        ],
        chaos.randint(0, 6),
    )
    bodies = ["", "{}", "5\r\nhello\r\n0\r\n\r\n", "ffffffffffffffff\r\nx", "zz\r\n", '{"n": 5', "\x00" * 20]
    head = "\r\n".join([f"{method} {path} {version}".strip(), *headers])
    data = bytearray((head + "\r\n\r\n" + chaos.choice(bodies)).encode("latin-1", "replace"))
    for _ in range(chaos.choice([0, 0, 1, 3])):
        data[chaos.randrange(len(data))] = chaos.randrange(256)
    return bytes(data)


def send_and_close(port: int, data: bytes) -> bytes:
    """Send bytes, end the sending side, and return what comes back."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                answer += chunk
    except ConnectionError:
        pass
    return answer
