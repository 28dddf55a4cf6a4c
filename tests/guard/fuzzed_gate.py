"""The gate alone under arbitrary requests: the entry point for a fuzzer, and the conditions for every input.

Standard library only: the coverage-guided fuzzer (`benchmarks/fuzz_guard.py`) loads it in a separate environment.
"""

import asyncio
import copy
import hashlib
import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from servekit.serve.guard.inside.servekit_guard.asgi import CHECKED_BODY, Message, Receive, Scope, Send
from servekit.serve.guard.inside.servekit_guard.body.fields import ROUTES
from servekit.serve.guard.inside.servekit_guard.core.admission import Model
from servekit.serve.guard.inside.servekit_guard.gate import Gate
from servekit.serve.guard.inside.servekit_guard.guard_config import Rules
from servekit.serve.guard.inside.servekit_guard.routes import CLIENT_ROUTES, DRAIN, OWN_ROUTES, OWN_TABLE, find_route

KEY, TOKEN = "k" * 32, "t" * 32
MAX_BODY_BYTES = 1 << 20
VOCABULARY = 262_144
LONGEST_CPU_S = 2.5
"""Of the event loop's own processor time, for one request: what no admitted request may hold it for."""
REFUSED = frozenset({400, 401, 404, 408, 413, 429, 503})
PATHS = [route.path for route in OWN_ROUTES if route is not DRAIN] + [
    "/metrics/",
    "//v1/models",
    "/v1%2Fmodels",
    "/invocations",
    "",
]
METHODS = ["POST", "GET", "HEAD", "OPTIONS", "PUT", "post", ""]
PLAIN = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}'


class WrongError(AssertionError):
    """A condition that must always hold does not."""


class FuzzedGate:
    """A gate in front of an application that reads its request and answers, or fails as vLLM may."""

    def __init__(self, folder: Path) -> None:
        keys = folder / "keys"
        keys.touch(0o600)
        keys.write_text(f"{KEY}\n")
        rules = Rules(
            token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
            api_keys_file=str(keys),
            max_body_bytes=MAX_BODY_BYTES,
            max_in_flight=4,
            max_buffered_bytes=4 * MAX_BODY_BYTES,
        )
        self.gate = Gate(self._application, rules)
        self.loop = asyncio.new_event_loop()
        self.slowest_s = 0.0
        self.gate.handoff.model = Model(VOCABULARY, max_model_len=20_000)
        self._app = SimpleNamespace(state=SimpleNamespace(), user_middleware=(), routes=())
        self._reached: list[tuple[str, bytes]] = []
        self._fails = False
        self._gone = False

    def close(self) -> None:
        """Close the event loop."""
        self.loop.close()

    def try_input(self, data: bytes) -> int:
        """Send what `data` describes; return the status, 0 when there was no answer. Raises WrongError."""
        scope, chunks, self._fails, self._gone = describe(data)
        scope["app"] = self._app
        sent: list[Message] = []
        self._reached = []
        began_s = time.thread_time()
        try:
            self.loop.run_until_complete(self._serve(scope, chunks, sent))
        except ZeroDivisionError:
            if not (self._fails and self._reached):
                raise
        taken_s = time.thread_time() - began_s
        self.slowest_s = max(self.slowest_s, taken_s)
        if taken_s > LONGEST_CPU_S:
            raise WrongError(f"blocked the event loop for {taken_s:.3f} s")
        self._judge(scope, b"".join(chunks), sent)
        return int(sent[0].get("status", 0)) if sent else 0

    async def _serve(self, scope: Scope, chunks: list[bytes], sent: list[Message]) -> None:
        pending = list(chunks) or [b""]

        async def receive() -> Message:
            if not pending:
                return {"type": "http.disconnect"}
            chunk = pending.pop(0)
            if self._gone and not pending:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": bool(pending)}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.gate(scope, receive, send)

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while scope["type"] == "http":
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self._reached.append((scope["path"], body))
        if self._fails:
            raise ZeroDivisionError
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    def _judge(self, scope: Scope, body: bytes, sent: list[Message]) -> None:
        counters = self.gate.counters()
        if counters["in_flight"] or counters["buffered_bytes"]:
            raise WrongError(f"a slot or its bytes were not released: {counters}")
        if self._reached:
            self._judge_passed(scope, body)
        elif scope["type"] == "http" and sent:
            _judge_refusal(sent)

    def _judge_passed(self, scope: Scope, body: bytes) -> None:
        headers = dict(scope.get("headers", ()))
        own = headers.get(b"x-servekit-token") == TOKEN.encode()
        keyed = headers.get(b"authorization", b"").lower() == f"bearer {KEY}".encode()
        keyed = keyed or (b"authorization" not in headers and headers.get(b"x-api-key", b"").strip() == KEY.encode())
        public = [route.path for route in CLIENT_ROUTES if route.public]
        if not (own or keyed or scope["path"] in public):
            raise WrongError("passed without a key")
        path, seen = self._reached[0]
        if find_route(scope, OWN_TABLE) is None:
            raise WrongError(f"passed to {path!r}")
        if path in ROUTES and not own:
            if seen != body:
                raise WrongError("the body was changed on the way")
            if not isinstance(scope.get(CHECKED_BODY), dict):
                raise WrongError("an unchecked body passed")


def _judge_refusal(sent: list[Message]) -> None:
    status = sent[0]["status"]
    if status == 200:  # the guard's own routes, for servekit
        return
    if status not in REFUSED:
        raise WrongError(f"status {status}")
    text = b"".join(message.get("body", b"") for message in sent[1:])
    if text and not json.loads(text)["error"]["message"]:
        raise WrongError("a refusal without a message")


def describe(data: bytes) -> tuple[Scope, list[bytes], bool, bool]:
    """Turn a fuzzer's bytes into a request: scope, body in chunks, whether vLLM fails, whether the client disconnects.

    The first eight bytes select what is unusual, all zero for an ordinary request; the rest is the body.
    """
    choice = data[:8].ljust(8, b"\0")
    body = data[8:]
    path = PATHS[(choice[0] or 5) % len(PATHS)] if choice[0] else list(ROUTES)[choice[1] % len(ROUTES)]
    headers = [(b"content-type", b"application/json")]
    if choice[2] != 1:
        headers.append((b"authorization", b"Bearer " + KEY.encode() + body[: choice[2] // 250]))
    if choice[3] == 1:
        headers.append((b"x-servekit-token", TOKEN.encode()))
    if choice[3] in (2, 3):
        headers += [(b"content-length", body[:19]), (b"x-request-id", body[:99]), (b"upgrade", b"h2c")]
    if choice[3] == 4:
        headers.append((b"content-length", str(len(body)).encode()))
    scope: Scope = {
        "type": {1: "websocket", 2: "other"}.get(choice[4], "http"),
        "path": path,
        "raw_path": {1: body[:20], 2: None}.get(choice[5], path.encode()),
        "method": METHODS[choice[6] % len(METHODS)],
        "root_path": "/x" if choice[5] == 3 else "",
        "headers": headers,
        "client": None if choice[5] == 4 else ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "extensions": {"websocket.http.response": {}} if choice[5] == 5 else {},
        "http_version": "1.1",
        "query_string": b"",
        "scheme": "http",
        "state": {},
    }
    pieces = 1 + choice[7] % 4
    size = -(-len(body) // pieces) or 1
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return scope, chunks, choice[7] & 16 != 0, choice[7] & 32 != 0


def mutate(data: bytes, chaos: random.Random) -> bytes:
    """Return the input with its JSON changed in one place, or with some bytes changed when it contains no JSON."""
    head, body = data[:8].ljust(8, b"\0"), data[8:]
    if chaos.random() < 0.15:
        changed = bytearray(head)
        changed[chaos.randrange(8)] = chaos.choice((0, 1, 2, 3, 4, 5, 16, 32, chaos.randrange(256)))
        head = bytes(changed)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or chaos.random() < 0.1:
        return head + _changed_bytes(body, chaos)
    for _ in range(chaos.choice((1, 1, 1, 2, 4))):
        _change(fields, head, chaos)
    return head + json.dumps(fields).encode()


def _changed_bytes(body: bytes, chaos: random.Random) -> bytes:
    changed = bytearray(body or PLAIN)
    for _ in range(chaos.choice((1, 1, 2, 8))):
        place = chaos.randrange(len(changed))
        changed[place : place + chaos.choice((0, 1, 1, 4))] = chaos.choice(PIECES) if chaos.random() < 0.5 else b"\xff"
        changed = changed or bytearray(b"{")
    return bytes(changed[: MAX_BODY_BYTES + 100])


def _change(fields: dict[str, Any], head: bytes, chaos: random.Random) -> None:
    """Set a field of the route, or change something at a deeper level."""
    names = list(ROUTES[list(ROUTES)[head[1] % len(ROUTES)]])
    place: Any = fields
    while chaos.random() < 0.5:
        inner = [
            value for value in (place.values() if isinstance(place, dict) else place) if isinstance(value, (dict, list))
        ]
        if not inner:
            break
        place = chaos.choice(inner)
    value = copy.deepcopy(chaos.choice(VALUES if chaos.random() < 0.995 else LARGE))
    if isinstance(place, list):
        place[chaos.randrange(len(place) + 1) :] = [value] * chaos.choice((0, 1, 2, 9))
    elif chaos.random() < 0.2 and place:
        del place[chaos.choice(list(place))]
    else:
        known = list(place) or names
        place[chaos.choice(names if place is fields else known + NAMES)] = value


PIECES = [
    b"{",
    b"[",
    b"]",
    b"}",
    b'"',
    b",",
    b":",
    b"\\u",
    rb"\ud83d",
    b"\0",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"[" * 3000,
]
NAMES = ["uuid", "type", "content", "image_url", "schema", "json", "regex", "properties", "$ref", "text", "role"]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, -(2**63) - 1, 2**70, 10**400, 1e308, float("nan"), float("inf")),
    *("", " ", "\0", "\ud800", "a" * 300, "5", "{{ x }}", "<|image|>", "(a{1,99}){1,99}", "data:,"),
    *([], {}, [[]], [None], ["a"], [1], [VOCABULARY], [VOCABULARY - 1], [-1], [1.5], [True], ["a"] * 40),
    *({"a": 1}, {"9": 1}, {str(VOCABULARY): 1}, {"json_object": False}, {"json": ""}, {"choice": ["a", "b\n"]}),
    *({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}),
    *({"regex": "a+"}, {"grammar": "root ::= root"}, {"structural_tag": ""}, {"enable_thinking": True}),
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}, "uuid": "u"}]}],
    [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
]
LARGE: list[Any] = ["a" * 70_000, ["a"] * 300, [9] * 30_000, [{"role": "user", "content": "x"}] * 2100]
SEEDS = [bytes([0, number, 0, 0, 0, 0, 0, 0]) + PLAIN for number in range(len(ROUTES))]
