"""The guard at the start of a drain: which requests it refuses, and what it waits for; with a stand-in for vLLM."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.asgi import Message, Receive, Scope, Send
from servekit.serve.guard.inside.servekit_guard.core.handoff import TooLateError
from servekit.serve.guard.inside.servekit_guard.gate import Gate
from servekit.serve.guard.inside.servekit_guard.routes import CLIENT_ROUTES, DRAIN, Route
from tests.guard.test_gate import BODY, Upstream, ask, make_gate, make_scope, own_headers

PLAIN = SimpleNamespace(n=1, prompt_logprobs=None, logprobs=None)
"""Sampling parameters that ask for nothing special."""


class Engine:
    """The part of vLLM's engine client that the guard uses; `core` is what has reached EngineCore."""

    def __init__(self) -> None:
        self.core: list[str] = []
        self.vllm_config = SimpleNamespace(shutdown_timeout=60)
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 1000, max_model_len=4096)
        self.engine_core = self
        self.answers = True

    async def add_request(self, name: str, _prompt: Any, _params: Any) -> str:
        """Send a request to EngineCore."""
        self.core.append(name)
        return f"queue of {name}"

    async def get_supported_tasks_async(self) -> None:
        """Answer as soon as EngineCore has what was sent before."""
        await asyncio.sleep(0.01 if self.answers else 3600)


class Vllm:
    """Renders a prompt until the test lets it continue, passes the request to the engine, and returns the result."""

    def __init__(self, engine: Engine) -> None:
        self.engine: Any = engine
        self.rendered = asyncio.Event()
        self.made = asyncio.Event()
        self.rendering = 0

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        self.rendering += 1
        await self.rendered.wait()
        try:
            # In a separate task, as vLLM streams.
            await asyncio.create_task(self.engine.add_request("a", {}, PLAIN))
        except TooLateError:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"too late"})
            return
        await self.made.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


async def drain(gate: Gate) -> dict[str, Any]:
    """Start a drain as servekit does."""
    status, _, body = await ask(gate, make_scope(DRAIN.path, DRAIN.method, key=None, headers=own_headers()))
    assert status == 200
    said = json.loads(body)
    assert isinstance(said, dict)
    return said


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until a condition holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is not ours to signal
            await asyncio.sleep(0)


def run_with(key_file: Path, scenario: Callable[[Gate, Vllm, Engine], Awaitable[None]], *, settle_s: float = 5) -> None:
    """Run a scenario with a guard in front of a stand-in for vLLM."""

    async def main() -> None:
        engine = Engine()
        vllm = Vllm(engine)
        gate = make_gate(vllm, key_file, settle_s=settle_s, max_body_s=60, max_in_flight=8)
        gate.handoff.watch(engine)
        await scenario(gate, vllm, engine)

    asyncio.run(main())


@pytest.mark.parametrize("route", CLIENT_ROUTES, ids=lambda route: route.path)
def test_every_client_is_refused(key_file: Path, route: Route) -> None:
    """During a drain each route is 503 with a retry time, in OpenAI's format, and vLLM gets nothing."""

    async def scenario(gate: Gate, vllm: Vllm, engine: Engine) -> None:
        assert await drain(gate) == {"in_flight": 0, "settled": True}
        status, headers, body = await ask(gate, make_scope(route.path, route.method), BODY)
        assert status == 503
        assert headers[b"retry-after"] == b"1"
        assert headers[b"connection"] == b"close"
        error = json.loads(body)["error"]
        kind = "overloaded_error" if route.path.startswith("/v1/messages") else "server_error"
        assert (error["type"], error["code"], error["param"]) == (kind, "server_draining", None)
        assert "draining" in error["message"]
        assert (vllm.rendering, engine.core) == (0, [])
        counted = {(row["route"], row["outcome"]): row["count"] for row in gate.counters()["requests"]}
        assert counted[route.path, "draining"] == 1

    run_with(key_file, scenario)


def test_a_drain_does_not_weaken_the_checks(key_file: Path) -> None:
    """During a drain a missing key is still 401 and an unknown route 404; only servekit's token starts a drain."""

    async def scenario(gate: Gate, _vllm: Vllm, _engine: Engine) -> None:
        assert (await ask(gate, make_scope(DRAIN.path, DRAIN.method)))[0] == 404
        assert (await ask(gate, make_scope(DRAIN.path, "GET", headers=own_headers())))[0] == 404
        await drain(gate)
        assert (await ask(gate, make_scope(key=None), BODY))[0] == 401
        assert (await ask(gate, make_scope("/nowhere")))[0] == 404

    run_with(key_file, scenario)


def test_servekit_still_passes(upstream_gate: tuple[Gate, Upstream]) -> None:
    """servekit's own requests are answered during a drain."""
    gate, upstream = upstream_gate

    async def scenario() -> None:
        await drain(gate)
        assert (await ask(gate, make_scope("/metrics", "GET", key=None, headers=own_headers())))[0] == 200

    asyncio.run(scenario())
    assert upstream.seen[0]["path"] == "/metrics"


@pytest.fixture
def upstream_gate(key_file: Path) -> tuple[Gate, Upstream]:
    upstream = Upstream()
    return make_gate(upstream, key_file, settle_s=0.05), upstream


def test_an_engine_that_cannot_be_asked(upstream_gate: tuple[Gate, Upstream]) -> None:
    """With an unknown engine client, the guard still refuses clients, and reports that it did not settle."""
    gate, _ = upstream_gate
    assert asyncio.run(drain(gate)) == {"in_flight": 0, "settled": False}


def test_the_drain_waits_for_what_was_let_in(key_file: Path) -> None:
    """The drain is settled once the request that is being rendered has reached EngineCore; that request completes."""

    async def scenario(gate: Gate, vllm: Vllm, engine: Engine) -> None:
        request = asyncio.create_task(ask(gate, make_scope(), BODY))
        await until(lambda: vllm.rendering)
        draining = asyncio.create_task(drain(gate))
        await asyncio.sleep(0.05)
        assert not draining.done()
        vllm.rendered.set()
        assert await draining == {"in_flight": 1, "settled": True}
        assert engine.core == ["a"]
        vllm.made.set()
        assert (await request)[0] == 200

    run_with(key_file, scenario)


def test_the_wait_counts_as_drain(key_file: Path) -> None:
    """The time that settling took is subtracted from the time that vLLM gives its EngineCore."""

    async def scenario(gate: Gate, vllm: Vllm, engine: Engine) -> None:
        request = asyncio.create_task(ask(gate, make_scope(), BODY))
        await until(lambda: vllm.rendering)
        assert (await drain(gate))["settled"] is False
        assert 59 < engine.vllm_config.shutdown_timeout <= 59.8
        vllm.rendered.set()
        await request

    run_with(key_file, scenario, settle_s=0.2)


def test_a_late_request_gets_no_empty_answer(key_file: Path) -> None:
    """A request that has not reached EngineCore by the deadline never reaches it, and fails."""

    async def scenario(gate: Gate, vllm: Vllm, engine: Engine) -> None:
        request = asyncio.create_task(ask(gate, make_scope(), BODY))
        await until(lambda: vllm.rendering)
        assert await drain(gate) == {"in_flight": 1, "settled": False}
        vllm.rendered.set()
        status, _, body = await request
        assert (status, json.loads(body)["error"]["message"]) == (500, "too late")
        assert engine.core == []

    run_with(key_file, scenario, settle_s=0.05)


def test_an_engine_core_that_takes_nothing(key_file: Path) -> None:
    """A hung EngineCore delays the drain by the settling time only."""

    async def scenario(gate: Gate, _vllm: Vllm, engine: Engine) -> None:
        engine.answers = False
        async with asyncio.timeout(2):
            assert await drain(gate) == {"in_flight": 0, "settled": False}

    run_with(key_file, scenario, settle_s=0.05)


def test_a_client_that_still_sends_its_body(key_file: Path) -> None:
    """It is refused when the drain begins, and delays nothing."""

    async def scenario(gate: Gate, vllm: Vllm, _engine: Engine) -> None:
        sent: list[Message] = []
        messages: asyncio.Queue[Message] = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": b"{", "more_body": True})

        async def send(message: Message) -> None:
            sent.append(message)

        request = asyncio.ensure_future(gate(make_scope(), messages.get, send))
        await until(messages.empty)
        assert gate.counters()["in_flight"] == 1
        assert await drain(gate) == {"in_flight": 0, "settled": True}
        await until(lambda: sent)
        assert sent[0]["status"] == 503
        messages.put_nowait({"type": "http.disconnect"})
        await request
        assert vllm.rendering == 0
        assert gate.counters()["buffered_bytes"] == 0

    run_with(key_file, scenario)


def test_servekits_own_token_is_not_held_back(key_file: Path) -> None:
    """A late canary still reaches EngineCore: only clients' requests are tracked."""

    async def scenario(gate: Gate, _vllm: Vllm, engine: Engine) -> None:
        await drain(gate)
        client: Any = engine
        assert await client.add_request("canary", {}, PLAIN) == "queue of canary"

    run_with(key_file, scenario)
