"""The guard's ASGI class with hand-made scopes: no server, no engine."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from servekit.serve.guard.inside.servekit_guard.asgi import App, Message, Receive, Scope, Send
from servekit.serve.guard.inside.servekit_guard.gate import TOKEN_HEADER, Gate
from servekit.serve.guard.inside.servekit_guard.guard_config import Rules
from servekit.serve.guard.inside.servekit_guard.routes import CLIENT_ROUTES, MODEL, NAMED_MODEL, OWN_ROUTES, Route
from tests.conftest import KEY

TOKEN = "a-private-token"
CHAT = "/v1/chat/completions"
BODY = b'{"model": "m"}'
ALLOWED = {(route.path, route.method) for route in CLIENT_ROUTES}


class Upstream:
    """A stand-in for vLLM: reads the body, answers 200, and records what it got."""

    def __init__(self) -> None:
        self.seen: list[Scope] = []
        self.bodies: list[bytes] = []
        self.hold: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        if scope["type"] == "lifespan":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        if self.hold is not None:
            await self.hold.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def gate(upstream: Upstream, key_file: Path) -> Gate:
    return make_gate(upstream, key_file)


def make_gate(upstream: App, key_file: Path | None, **limits: Any) -> Gate:
    values: dict[str, Any] = {
        "max_body_bytes": 1000,
        "max_in_flight": 2,
        "max_buffered_bytes": 1500,
        "max_body_s": 0.1,
    } | limits
    rules = Rules(
        token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
        api_keys_file=str(key_file) if key_file else None,
        **values,
    )
    return Gate(upstream, rules)


def make_scope(
    path: str = CHAT,
    method: str = "POST",
    *,
    key: str | None = KEY,
    headers: Sequence[tuple[bytes, bytes]] = (),
    **changes: Any,
) -> dict[str, Any]:
    sent = list(headers)
    if key is not None:
        sent.append((b"authorization", f"Bearer {key}".encode()))
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": b"",
        "headers": sent,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    } | changes


async def ask(
    gate: Gate, scope: Scope, *chunks: bytes, hang_up: bool = False
) -> tuple[int | None, dict[bytes, bytes], bytes]:
    """Send one request and return its status, headers and body; status None when nothing was answered."""
    chunks = chunks or (b"",)
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": hang_up or number < len(chunks)}
        for number, chunk in enumerate(chunks, start=1)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        if hang_up:
            return {"type": "http.disconnect"}
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await gate(scope, receive, send)
    if not sent:
        return None, {}, b""
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


def run(
    gate: Gate, scope: Scope, *chunks: bytes, hang_up: bool = False
) -> tuple[int | None, dict[bytes, bytes], bytes]:
    return asyncio.run(ask(gate, scope, *chunks, hang_up=hang_up))


async def silent() -> Message:
    raise AssertionError


async def deaf(_message: Message) -> None:
    raise AssertionError


def own_headers(token: str = TOKEN) -> list[tuple[bytes, bytes]]:
    return [(TOKEN_HEADER, token.encode())]


@pytest.mark.parametrize("route", CLIENT_ROUTES, ids=lambda route: route.path)
def test_an_allowed_route_passes(gate: Gate, upstream: Upstream, route: Route) -> None:
    """Each route of the allowlist reaches vLLM with a valid key."""
    assert run(gate, make_scope(route.path, route.method), BODY)[0] == 200
    assert upstream.seen[0]["path"] == route.path


@pytest.mark.parametrize("route", CLIENT_ROUTES, ids=lambda route: route.path)
def test_only_a_public_route_needs_no_key(gate: Gate, upstream: Upstream, route: Route) -> None:
    """Without a key every route but /health is 401, and vLLM gets nothing."""
    status, _, _ = run(gate, make_scope(route.path, route.method, key=None), BODY)
    assert status == (200 if route.path == "/health" else 401)
    assert len(upstream.seen) == (1 if route.path == "/health" else 0)


@given(path=st.text(max_size=40), method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "get"]))
@settings(max_examples=300, deadline=None)
def test_every_other_path_is_not_found(tmp_path_factory: pytest.TempPathFactory, path: str, method: str) -> None:
    """Every other path, with any method, is 404 and does not reach vLLM."""
    upstream = Upstream()
    gate = shared_gate(tmp_path_factory, upstream)
    status, _, _ = run(gate, make_scope("/" + path, method))
    assert (status == 404) == (("/" + path, method) not in ALLOWED)


@given(
    st.sampled_from(sorted(ALLOWED - {(MODEL.path, "GET")})),
    st.sampled_from(["/{}", "{}/", "{}?", "{}#", "{}%00", "{}\0", "{} ", "/.{}", "/..{}", "{};x", "{}//"]),
)
@settings(max_examples=100, deadline=None)
def test_a_path_near_an_allowed_one_is_not_found(
    tmp_path_factory: pytest.TempPathFactory, allowed: tuple[str, str], form: str
) -> None:
    """Nothing is normalised: a path that only resembles an allowed one is 404."""
    near, upstream = form.format(allowed[0]), Upstream()
    assume(not near.removeprefix(NAMED_MODEL) or not near.startswith(NAMED_MODEL))  # the path of a model
    gate = shared_gate(tmp_path_factory, upstream)
    assert run(gate, make_scope(near, allowed[1]))[0] == 404
    assert upstream.seen == []


def shared_gate(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Gate:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.touch(mode=0o600)
    path.write_text(f"{KEY}\n")
    return make_gate(upstream, path)


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_path": b"/v1%2Fchat/completions"},
        {"raw_path": b"/v1/chat/completions?x"},
        {"raw_path": b"http://h/v1/chat/completions"},
        {"root_path": "/v1"},
        {"method": "HEAD"},
        {"method": "OPTIONS"},
    ],
)
def test_a_path_that_was_sent_otherwise_is_not_found(gate: Gate, upstream: Upstream, changes: dict[str, Any]) -> None:
    """An escaped or prefixed path counts as it was sent, not as it decodes; HEAD and OPTIONS are not POST."""
    assert run(gate, make_scope(**changes))[0] == 404
    assert upstream.seen == []


@pytest.mark.parametrize("name", [b"m", b"google/gemma-4", b"google%2Fgemma-4", b"a%20b", b"../metrics", b"{name}"])
def test_a_model_is_asked_for_by_its_name(gate: Gate, upstream: Upstream, name: bytes) -> None:
    """Every name reaches vLLM, with slashes as they are or escaped, is counted under one label, and needs a key."""
    raw_path = NAMED_MODEL.encode() + name
    scope = make_scope(unquote(raw_path.decode()), "GET", raw_path=raw_path)
    assert run(gate, scope)[0] == 200
    assert upstream.seen[0]["path"] == scope["path"]
    assert counts(gate) == {(MODEL.path, "allowed"): 1}
    assert run(gate, scope | {"headers": []})[0] == 401
    assert run(gate, scope | {"method": "DELETE"})[0] == 404


@pytest.mark.parametrize("raw_path", [b"/v1/models/", b"/v1%2Fmodels/m", b"/v1/models%2Fm", b"http://h/v1/models/m"])
def test_what_stands_before_the_name_is_compared(gate: Gate, upstream: Upstream, raw_path: bytes) -> None:
    """An escape before the name, or no name, is 404."""
    path = unquote(raw_path.decode()).removeprefix("http://h")
    assert run(gate, make_scope(path, "GET", raw_path=raw_path))[0] == 404
    assert upstream.seen == []


@pytest.mark.parametrize("route", CLIENT_ROUTES, ids=lambda route: route.path)
def test_head_is_served_where_get_is(gate: Gate, upstream: Upstream, route: Route) -> None:
    """A probe's HEAD reaches vLLM as GET, needs the same key, and is 404 where a body is posted."""
    status, _, _ = run(gate, make_scope(route.path, "HEAD"))
    assert (status == 200) == (route.method == "GET")
    assert [scope["method"] for scope in upstream.seen] == ["GET"] * len(upstream.seen)
    assert run(gate, make_scope(route.path, "HEAD", key=None))[0] == (
        200 if route.public else 401 if route.method == "GET" else 404
    )


def test_a_refusal_is_shaped_like_openai(gate: Gate) -> None:
    """Every refusal is JSON that OpenAI's clients understand, with the correct length."""
    status, headers, body = run(gate, make_scope(key=None))
    assert status == 401
    assert headers[b"www-authenticate"] == b"Bearer"
    assert headers[b"content-type"] == b"application/json"
    assert int(headers[b"content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["code"] == "invalid_api_key"


def test_a_refusal_of_head_has_no_body(gate: Gate) -> None:
    """HEAD is answered with headers only."""
    status, headers, body = run(gate, make_scope("/nowhere", "HEAD"))
    assert (status, body) == (404, b"")
    assert int(headers[b"content-length"]) > 0


@pytest.mark.parametrize(
    "header",
    [b"", b"Bearer", b"Bearer ", KEY.encode(), b"Basic " + KEY.encode(), b"Bearer x" + KEY.encode(), b"\xff\xfe"],
)
def test_other_credentials_are_refused(gate: Gate, header: bytes) -> None:
    """Only `Bearer KEY` with a key of the file is accepted."""
    assert run(gate, make_scope(key=None, headers=[(b"authorization", header)]))[0] == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_scheme_is_case_insensitive(gate: Gate, scheme: str) -> None:
    """RFC 9110 lets a client write the scheme in any case, and more than one space after it."""
    header = (b"authorization", f"{scheme} {KEY}".encode())
    assert run(gate, make_scope(key=None, headers=[header]), BODY)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"x-api-key", KEY.encode())], 200),
        ([(b"x-api-key", b" " + KEY.encode())], 200),
        ([(b"x-api-key", b"Bearer " + KEY.encode())], 401),
        ([(b"x-api-key", b"another-key-0123456789")], 401),
        ([(b"x-api-key", KEY.encode())] * 2, 401),
        ([(b"api-key", KEY.encode())], 401),
        ([(b"x-api-key", KEY.encode()), (b"authorization", b"Bearer another-key-0123456789")], 401),
        ([(b"x-api-key", b"of-another-service"), (b"authorization", b"Bearer " + KEY.encode())], 200),
    ],
)
def test_a_key_may_come_as_anthropics_clients_send_it(
    gate: Gate, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    """`X-Api-Key` counts when there is no Authorization header; two of them, or Azure's name for it, do not."""
    assert run(gate, make_scope("/v1/messages", key=None, headers=headers), BODY)[0] == status


def test_two_credentials_are_refused(gate: Gate) -> None:
    """Two Authorization headers are refused, even when one is valid."""
    assert run(gate, make_scope(headers=[(b"authorization", b"Bearer other")]))[0] == 401


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=8))
@settings(max_examples=200, deadline=None)
def test_no_headers_without_the_key_open_a_route(
    tmp_path_factory: pytest.TempPathFactory, headers: list[tuple[bytes, bytes]]
) -> None:
    """With any headers, but without the key, nothing reaches vLLM."""
    upstream = Upstream()
    gate = shared_gate(tmp_path_factory, upstream)
    assert run(gate, make_scope(key=None, headers=headers), BODY)[0] == 401
    assert upstream.seen == []


def test_without_authentication_everyone_is_admitted(upstream: Upstream) -> None:
    """Without a key file every route of the allowlist is open, and all others are still 404."""
    gate = make_gate(upstream, None)
    assert run(gate, make_scope(key=None), BODY)[0] == 200
    assert run(gate, make_scope("/invocations", key=None))[0] == 404
    assert gate.counters()["authentication"] is False


@pytest.mark.parametrize("route", OWN_ROUTES, ids=lambda route: route.path)
def test_servekit_reaches_its_routes(gate: Gate, route: Route) -> None:
    """The private token opens the allowlist and servekit's own routes, from this host."""
    scope = make_scope(route.path, route.method, key=None, headers=own_headers())
    scope["app"] = SimpleNamespace(state=SimpleNamespace())
    status, _, body = run(gate, scope, BODY)
    assert status == 200
    if route.path == "/_servekit/effective":
        assert "kv_cache_dtype" in json.loads(body)["missing"]


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": own_headers("another")},
        {"headers": own_headers() * 2},
        {"headers": own_headers(), "client": ("10.0.0.9", 1)},
        {"headers": own_headers(), "client": None},
        {"headers": own_headers(), "client": ("unix", 0)},
    ],
)
def test_the_token_alone_is_not_enough_from_elsewhere(gate: Gate, changes: dict[str, Any]) -> None:
    """A wrong token, two tokens, or the right token from another host give no access."""
    assert run(gate, make_scope("/metrics", "GET", key=None) | changes)[0] == 404


def test_the_token_works_from_the_listening_address(gate: Gate) -> None:
    """When the engine listens on one address only, servekit comes from that address."""
    changes = {"client": ("10.0.0.5", 1), "server": ("10.0.0.5", 8000), "headers": own_headers()}
    assert run(gate, make_scope("/metrics", "GET", key=None) | changes)[0] == 200


def test_the_token_is_not_a_key_elsewhere(gate: Gate) -> None:
    """The token gives no access to other routes."""
    assert run(gate, make_scope("/invocations", headers=own_headers()))[0] == 404


def test_a_client_cannot_reach_servekits_routes(gate: Gate) -> None:
    """A valid key gives no access to metrics or the guard's own routes."""
    for path in ("/metrics", "/_servekit/effective", "/_servekit/counters"):
        assert run(gate, make_scope(path, "GET"))[0] == 404


def test_lifespan_passes(gate: Gate, upstream: Upstream) -> None:
    """vLLM's start and stop events reach it."""
    asyncio.run(gate({"type": "lifespan"}, silent, deaf))
    assert upstream.seen == [{"type": "lifespan"}]


def test_a_websocket_is_closed(gate: Gate, upstream: Upstream) -> None:
    """A websocket is refused, with a 404 if the server supports it, and an unknown type is dropped."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = make_scope("/v1/realtime", type="websocket")
    asyncio.run(gate(scope, silent, send))
    asyncio.run(gate(scope | {"extensions": {"websocket.http.response": {}}}, silent, send))
    asyncio.run(gate({"type": "webtransport"}, silent, send))
    assert [message["type"] for message in sent] == [
        "websocket.close",
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert upstream.seen == []


def test_the_body_arrives_whole(gate: Gate, upstream: Upstream) -> None:
    """vLLM gets the client's bytes, whatever pieces they arrived in."""
    assert run(gate, make_scope(), b'{"mo', b"", b'del": "m"}')[0] == 200
    assert upstream.bodies == [BODY]


def test_the_answer_is_not_touched(gate: Gate) -> None:
    """vLLM's answer is unchanged, except for the request's id and nginx's header."""
    status, headers, body = run(gate, make_scope(), BODY)
    assert (status, set(headers), body) == (200, {b"x-request-id", b"x-accel-buffering"}, b"ok")


@pytest.mark.parametrize("length", [b"1001", b"9" * 18])
def test_a_declared_body_over_the_limit_is_refused_unread(gate: Gate, upstream: Upstream, length: bytes) -> None:
    """A Content-Length over the limit is 413 before anything is read."""
    assert run(gate, make_scope(headers=[(b"content-length", length)]))[0] == 413
    assert upstream.seen == []


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"x")], [(b"content-length", b"3")]])
def test_a_body_that_grows_over_the_limit_is_refused(
    gate: Gate, upstream: Upstream, headers: list[tuple[bytes, bytes]]
) -> None:
    """A body without a correct length is counted as it arrives, and is 413 over the limit."""
    assert run(gate, make_scope(headers=headers), *[b" " * 300] * 4)[0] == 413
    assert upstream.seen == []


def test_a_slow_body_is_given_up(gate: Gate, upstream: Upstream) -> None:
    """A body that does not arrive in time is 408 and leaves no slot taken, whatever other bodies did."""

    async def main() -> None:
        async def receive() -> Message:
            await asyncio.sleep(0.03)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def status(after_s: float) -> int:
            sent: list[Message] = []

            async def send(message: Message) -> None:
                sent.append(message)

            await asyncio.sleep(after_s)
            await gate(make_scope(), receive, send)
            return int(sent[0]["status"])

        assert set(await asyncio.gather(status(0), status(0.05))) == {408}
        assert await status(0.05) == 408

    asyncio.run(main())
    assert upstream.seen == []
    assert_nothing_in_flight(gate)


def test_too_many_in_flight_are_told_to_wait(gate: Gate, upstream: Upstream) -> None:
    """A third request with two slots is 429 with Retry-After; models, health and servekit's requests still work."""

    async def main() -> None:
        upstream.hold = asyncio.Event()
        held = [asyncio.create_task(ask(gate, make_scope(), BODY)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert gate.counters()["in_flight"] == 2
        status, headers, _ = await ask(gate, make_scope(), BODY)
        assert (status, headers[b"retry-after"]) == (429, b"1")
        own = asyncio.create_task(ask(gate, make_scope(key=None, headers=own_headers()), BODY))
        models = asyncio.create_task(ask(gate, make_scope("/v1/models", "GET")))
        await asyncio.sleep(0.01)
        assert len(upstream.seen) == 4
        upstream.hold.set()
        for task in (*held, own, models):
            assert (await task)[0] == 200

    asyncio.run(main())
    assert_nothing_in_flight(gate)


def test_too_many_bytes_in_flight_are_told_to_wait(gate: Gate, upstream: Upstream) -> None:
    """Bodies that exceed the budget together are 429, although each is within its own limit."""

    async def main() -> None:
        upstream.hold = asyncio.Event()
        first = asyncio.create_task(ask(gate, make_scope(), BODY.ljust(900)))
        await asyncio.sleep(0.01)
        assert (await ask(gate, make_scope(headers=[(b"content-length", b"601")])))[0] == 429
        assert gate.counters()["buffered_bytes"] == 900
        upstream.hold.set()
        assert (await first)[0] == 200

    asyncio.run(main())
    assert_nothing_in_flight(gate)


def test_a_client_that_hangs_up_within_its_body_is_not_answered(gate: Gate, upstream: Upstream) -> None:
    """There is no client to answer, and the slot is free again."""
    assert run(gate, make_scope(), b"{", hang_up=True)[0] is None
    assert upstream.seen == []
    assert_nothing_in_flight(gate)
    assert counts(gate)[CHAT, "client_gone"] == 1


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
def test_the_slot_is_free_when_vllm_fails(key_file: Path, error: type[BaseException]) -> None:
    """An exception or a cancellation in vLLM passes through and leaves no slot taken."""

    async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    gate = make_gate(failing, key_file)
    with pytest.raises(error):
        run(gate, make_scope(), BODY)
    assert_nothing_in_flight(gate)


def test_a_harmful_field_is_refused(gate: Gate, upstream: Upstream) -> None:
    """A body that would harm vLLM is 400 and names the field."""
    status, _, body = run(gate, make_scope(), b'{"mm_processor_kwargs": {"do_resize": false}}')
    assert (status, json.loads(body)["error"]["param"]) == (400, "mm_processor_kwargs")
    assert upstream.seen == []


def test_what_happened_is_counted_by_route_and_outcome(gate: Gate) -> None:
    """Each request is counted once; unknown paths share one label, so that a scanner cannot create labels."""
    run(gate, make_scope(), BODY)
    run(gate, make_scope(key=None))
    run(gate, make_scope(), b" " * 1001)
    for path in ("/a", "/b"):
        run(gate, make_scope(path))
    run(gate, make_scope("/metrics", "GET", headers=own_headers()))
    assert counts(gate) == {
        (CHAT, "allowed"): 1,
        (CHAT, "unauthorized"): 1,
        (CHAT, "too_large"): 1,
        ("other", "not_found"): 2,
        ("/metrics", "own"): 1,
    }


def counts(gate: Gate) -> dict[tuple[str, str], int]:
    return {(entry["route"], entry["outcome"]): entry["count"] for entry in gate.counters()["requests"]}


def assert_nothing_in_flight(gate: Gate) -> None:
    counters = gate.counters()
    assert (counters["in_flight"], counters["buffered_bytes"]) == (0, 0)


def test_structured_output_in_flight_is_bounded(key_file: Path) -> None:
    """The weights of grammars are added up: a request that does not fit is 429, and every weight is released."""
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user"}], "response_format": {"type": "json_object"}, "n": 4}
    ).encode()
    for weight, status in ((3, 429), (4, 200)):
        upstream = Upstream()
        gate = make_gate(upstream, key_file, max_structured_weight=weight)
        for _ in range(2):
            assert run(gate, make_scope(), body)[0] == status
            assert gate.counters()["structured_weight"] == 0
