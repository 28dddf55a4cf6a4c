"""What a key has used: counted through the gate, with a stand-in for vLLM's states of sequences."""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.asgi import Receive, Scope, Send
from servekit.serve.guard.inside.servekit_guard.gate import Gate
from servekit.serve.guard.inside.servekit_guard.usage.ledger import (
    NO_KEY,
    OTHERS,
    OWN,
    SLOTS,
    Ledger,
    Usage,
    make_ledger,
    read_ledger,
)
from servekit.serve.guard.inside.servekit_guard.usage.meter import BOOK, Account, Meter, fail_stream
from servekit.serve.guard.inside.servekit_guard.usage.meter import Sequence as Counted
from servekit.serve.guard.inside.servekit_guard.usage.request_ring import SLOTS as LINES
from servekit.serve.guard.inside.servekit_guard.usage.request_ring import Ended, Ring, make_ring
from servekit.serve.guard.inside.servekit_guard.usage.wrong_keys import MOST, OFTEN, WrongKeys
from tests.conftest import KEY
from tests.guard.test_gate import BODY, make_gate, make_scope, own_headers, run

PROMPT, CHOICES, TOKENS = 7, 2, 5


@dataclass
class Sequence:
    """vLLM's `RequestState`, as far as it is read."""

    request_id: str
    request_index: int
    prompt_len: int = PROMPT
    stats: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            num_generation_tokens=0,
            arrival_time=0.0,
            queued_ts=0.0,
            scheduled_ts=0.0,
            first_token_ts=0.0,
            first_token_latency=0.5,
        )
    )


@dataclass
class Engine:
    """An application below the gate that gives its requests to vLLM's output processor, and answers with a status."""

    status: int = 200
    leaves: bool = False
    """The client hangs up while the engine works."""
    late_tokens: int = 0
    """Tokens that come after the answer."""
    event: str = ""
    """What a stream ends with before its end."""
    output_processor: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(request_states={}))

    def __post_init__(self) -> None:
        states = self.output_processor.request_states

        def add_request(request: Any, *, index: int) -> None:
            states[request.request_id] = Sequence(request.request_id, index)

        self.output_processor.add_request = add_request
        self.output_processor.process_outputs = len

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, generate, answer; after a stream's end uvicorn tells Starlette of a disconnect."""
        await receive()
        states = self.output_processor.request_states
        for index in range(CHOICES):
            request = SimpleNamespace(request_id=f"{scope['path']}-{index}", mm_features=[object()])
            self.output_processor.add_request(request, index=index)
        for state in states.values():
            state.stats.first_token_ts = 1.0
            state.stats.num_generation_tokens += TOKENS
        if self.leaves:
            while (await receive())["type"] != "http.disconnect":
                pass
        if not self.late_tokens:
            states.clear()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        event = fail_stream(lambda: self.event).encode() if self.event else b"{}"
        await send({"type": "http.response.body", "body": event, "more_body": bool(self.event)})
        if self.event:
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            assert (await receive())["type"] == "http.disconnect"


@dataclass
class Metered:
    """A gate over an engine, with the files that servekit reads."""

    gate: Gate
    engine: Engine
    folder: Path

    def used(self) -> dict[str, Usage]:
        """Return what the ledger's file says."""
        return read_ledger(self.folder / "usage")[1]


def meter(folder: Path, key_file: Path, engine: Engine, name: str = "team-a") -> Metered:
    """Return a gate with a key of this name."""
    key_file.write_text(f"{KEY}  # {name}\n")
    make_ledger(folder / "usage")
    make_ring(folder / "ring")
    gate = make_gate(engine, key_file, usage_file=str(folder / "usage"), request_log_file=str(folder / "ring"))
    gate.meter.watch(engine)
    return Metered(gate, engine, folder)


def test_an_answer_is_counted(tmp_path: Path, key_file: Path) -> None:
    """Each choice counts its tokens and its prompt, as in vLLM's counters; an image counts once for all choices."""
    metered = meter(tmp_path, key_file, Engine())
    assert run(metered.gate, make_scope(), BODY)[0] == 200
    used = metered.used()["team-a"]
    assert used == Usage(
        ok=1, prompt_tokens=CHOICES * PROMPT, output_tokens=CHOICES * TOKENS, images=1, in_flight_us=used.in_flight_us
    )
    assert list(metered.used()) == ["team-a"]


@pytest.mark.parametrize(
    ("engine", "body", "outcome"),
    [
        (Engine(status=400), BODY, "refused"),
        (Engine(status=500), BODY, "failed"),
        (Engine(), b"no JSON", "refused"),
        (Engine(), b"x" * 2000, "refused"),
    ],
)
def test_outcomes(tmp_path: Path, key_file: Path, engine: Engine, body: bytes, outcome: str) -> None:
    """What the guard or vLLM refuses, and what fails, is counted as that."""
    metered = meter(tmp_path, key_file, engine)
    run(metered.gate, make_scope(), body)
    assert getattr(metered.used()["team-a"], outcome) == 1
    assert metered.used()["team-a"][:4].count(0) == 3
    assert metered.gate.meter.open == {}


async def hang_up(gate: Gate) -> None:
    """Send a request whose server says that the client is gone whenever it is asked."""

    async def messages() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": BODY}
        while True:
            yield {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        return None

    await gate(make_scope(), aiter(messages()).__anext__, send)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_stream_that_ends_with_an_error(tmp_path: Path, key_file: Path, *, leaves: bool) -> None:
    """It has failed, although EngineCore never ended its sequences; it is cancelled if the client left before."""
    metered = meter(tmp_path, key_file, Engine(event='data: {"error": {}}\n\n', leaves=leaves, late_tokens=1))
    asyncio.run(hang_up(metered.gate))
    used = metered.used()["team-a"]
    assert (used.failed, used.cancelled) == ((0, 1) if leaves else (1, 0))


def test_a_client_that_leaves(tmp_path: Path, key_file: Path) -> None:
    """Its request is cancelled, and what the engine generated for it counts, after the end of the request too."""
    metered = meter(tmp_path, key_file, Engine(leaves=True, late_tokens=3))
    states = metered.engine.output_processor.request_states

    async def main() -> None:
        await hang_up(metered.gate)
        assert list(Ring(tmp_path / "ring").take()) == []  # not yet: the engine still works for it
        for state in states.values():
            state.stats.num_generation_tokens += 3
        states.clear()
        metered.gate.meter._tick()

    asyncio.run(main())
    used = metered.used()["team-a"]
    assert (used.cancelled, used.in_flight, used.output_tokens) == (1, 0, CHOICES * (TOKENS + 3))
    [line] = Ring(tmp_path / "ring").take()
    assert isinstance(line, Ended)
    assert (line.outcome, line.output_tokens, line.key) == ("cancelled", str(CHOICES * (TOKENS + 3)), "team-a")


def test_tokens_are_counted_while_a_request_runs(tmp_path: Path, key_file: Path) -> None:
    """A tick counts what is there so far, and the end adds the rest, not all of it again."""
    metered = meter(tmp_path, key_file, Engine())
    seen: list[Usage] = []
    add = metered.engine.output_processor.add_request

    def add_and_tick(request: Any, *, index: int) -> None:
        add(request, index=index)
        for state in metered.engine.output_processor.request_states.values():
            state.stats.num_generation_tokens += 1
        metered.gate.meter._tick()
        seen.append(metered.used()["team-a"])

    metered.engine.output_processor.add_request = add_and_tick
    run(metered.gate, make_scope(), BODY)
    assert [(usage.output_tokens, usage.in_flight) for usage in seen] == [(1, 1), (3, 1)]
    assert metered.used()["team-a"].output_tokens == CHOICES * TOKENS + 3


async def work(meter: Meter, states: dict[str, Sequence], truth: Counter[str], draw: random.Random) -> None:
    """Let 200 requests run, eight at a time, some with tokens after their end; keep in `truth` what they used."""

    async def ask(number: int) -> None:
        state = Sequence(f"r{number}", 0)
        with Account(meter, f"team-{number % 3}", sequences=[Counted(state.request_id, PROMPT, state.stats)]):
            states[state.request_id] = state
            truth["prompt_tokens"] += PROMPT
            state.stats.first_token_ts = 1.0
            for _ in range(draw.randrange(20)):
                state.stats.num_generation_tokens += 1
                truth["output_tokens"] += 1
                await asyncio.sleep(0)
            if number % 2:
                del states[state.request_id]
        await asyncio.sleep(0)
        states.pop(state.request_id, None)

    meter.states = states
    meter.close_on_signal()
    asking = {asyncio.create_task(ask(number)) for number in range(8)}
    for number in range(8, 200):
        meter._tick()
        _, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        asking.add(asyncio.create_task(ask(number)))
    await asyncio.wait(asking)


def test_the_books_close_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal at any bytecode of the meter closes a ledger in which each token of each request stands once."""
    make_ledger(tmp_path / "usage")
    meter = Meter(Ledger(str(tmp_path / "usage")))
    truth = Counter[str]()
    draw = random.Random(0)
    closed: list[tuple[object, ...]] = []
    pending = False

    def compare(*ended: int) -> None:
        nonlocal pending
        pending = False
        _, used, whole = read_ledger(tmp_path / "usage")
        differences = [name for name, value in truth.items() if value != sum(getattr(u, name) for u in used.values())]
        closed.append((ended, whole, differences))

    def interrupt(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal pending
        if frame.f_code.co_filename != sys.modules[Meter.__module__].__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not pending and draw.random() < 1 / 500:
            pending = True
            signal.raise_signal(BOOK)
        return interrupt

    monkeypatch.setattr(os, "kill", compare)
    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        asyncio.run(work(meter, {}, truth, draw))
    finally:
        sys.settrace(before)
    assert len(closed) > 50
    assert [each for each in closed if each != ((os.getpid(), signal.SIGKILL), True, [])] == []


def test_how_long_the_core_is_quiet(tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds since EngineCore's last output, whatever else the server does."""
    clock = SimpleNamespace(now_s=time.monotonic())
    metered = meter(tmp_path, key_file, Engine())
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_s)
    assert metered.engine.output_processor.process_outputs([1, 2]) == 2
    clock.now_s += 7
    assert metered.gate.counters()["quiet_s"] == 7
    metered.engine.output_processor.process_outputs([])
    assert metered.gate.counters()["quiet_s"] == 0


def test_servekits_own_requests_and_those_without_a_key(tmp_path: Path, key_file: Path) -> None:
    """Both have a name that no key can have; what makes no text is not counted, nor is a wrong key."""
    metered = meter(tmp_path, key_file, Engine())
    run(metered.gate, make_scope(key=None, headers=own_headers()), BODY)
    run(metered.gate, make_scope(key="sk-" + "x" * 30), BODY)
    assert {name: usage.output_tokens for name, usage in metered.used().items()} == {OWN: CHOICES * TOKENS}
    make_ledger(tmp_path / "usage")
    gate = make_gate(metered.engine, None, usage_file=str(tmp_path / "usage"))
    gate.meter.watch(metered.engine)
    run(gate, make_scope(key=None), BODY)
    assert metered.used()[NO_KEY].ok == 1


def test_more_names_than_slots(tmp_path: Path) -> None:
    """Names beyond the last slot share one, so that an operator's file of any size makes no more series."""
    make_ledger(tmp_path / "usage")
    ledger = Ledger(str(tmp_path / "usage"))
    for number in range(SLOTS + 10):
        ledger.cells[ledger.place(f"n{number}")] += 1
    used = read_ledger(tmp_path / "usage")[1]
    assert len(used) == SLOTS
    assert used[OTHERS].ok == 11


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    """A missing or short file has no usage."""
    assert read_ledger(tmp_path / "none") == ("", {}, False)
    (tmp_path / "short").write_bytes(b"x")
    assert read_ledger(tmp_path / "short") == ("", {}, False)


def test_a_ring_that_nobody_reads(tmp_path: Path) -> None:
    """Old lines go, and the reader learns how many; the newest are whole."""
    make_ring(tmp_path / "ring")
    ring = Ring(tmp_path / "ring")
    for number in range(LINES + 9):
        ring.put(Ended(*[str(number)] * len(Ended._fields)))
    lost, first, *_, last = Ring(tmp_path / "ring").take()
    assert (lost, first, last) == (10, Ended(*["10"] * 13), Ended(*[str(LINES + 8)] * 13))
    assert list(ring.take()) == []


def test_wrong_keys() -> None:
    """An old key that is sent again and again is reported by its hash; guesses share one count, and none is lost."""
    wrong = WrongKeys()
    for number in range(3 * MOST):
        wrong.count(f"guess-{number}".encode())
        wrong.count(b"an old key")
    wrong.count(None)
    counts = wrong.read()
    assert list(counts.values()) == [3 * MOST + OFTEN, 3 * MOST - OFTEN + 1]
    assert len(counts) == 2


def test_counts_of_wrong_keys_never_fall() -> None:
    """Prometheus takes a counter that falls for a restart, and would report a storm of guesses."""
    wrong = WrongKeys()
    before: dict[str, int] = {}
    for number in range(3 * OFTEN):
        wrong.count(b"an old key")
        wrong.count(b"another" if number % 2 else None)
        now = wrong.read()
        assert all(now[name] >= count for name, count in before.items())
        before = now
    assert sum(before.values()) == 6 * OFTEN
