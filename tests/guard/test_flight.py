"""The record of requests in flight: it outlives the server, and contains names and sizes only."""

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from servekit.serve.guard import FLIGHT_FILE_NAME
from servekit.serve.guard.inside.servekit_guard.asgi import Receive, Scope, Send
from servekit.serve.guard.inside.servekit_guard.flight import (
    SLOT_BYTES,
    Flights,
    make_flight_file,
    read_flights,
)
from servekit.serve.guard.prepare import INSIDE
from tests.conftest import wait_until
from tests.guard.conftest import GuardedEngine
from tests.guard.test_gate import BODY, CHAT, TOKEN, Upstream, ask, make_gate, make_scope

SLOTS = 3
SECRET = "a secret word"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An empty record of three slots."""
    path = tmp_path / "in_flight"
    make_flight_file(path, SLOTS)
    return path


def test_the_file_is_private(file: Path) -> None:
    """It has mode 0600, and space for each request from the start, so that a full disk shows early."""
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_blocks * 512 >= SLOTS * SLOT_BYTES
    assert read_flights(file) == []


class Holding(Upstream):
    """Signals when it has a request, and keeps it waiting."""

    began: asyncio.Event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.began.set()
        await super().__call__(scope, receive, send)


def test_a_request_is_on_record_while_it_is_in_flight(file: Path, key_file: Path) -> None:
    """The gate records id, route and size of an admitted request, and clears them when it is answered."""
    upstream = Holding()

    async def main() -> None:
        upstream.hold, upstream.began = asyncio.Event(), asyncio.Event()
        gate = make_gate(upstream, key_file, flight_file=str(file), max_in_flight=SLOTS)
        asked = asyncio.create_task(ask(gate, make_scope(headers=[(b"x-request-id", b"req-7")]), BODY))
        await asyncio.wait_for(upstream.began.wait(), 5)
        [flight] = read_flights(file)
        assert (flight.request_id, flight.route, flight.body_bytes) == ("req-7", CHAT, len(BODY))
        upstream.hold.set()
        await asked
        assert read_flights(file) == []

    asyncio.run(main())


def test_a_refused_request_leaves_nothing(file: Path, key_file: Path) -> None:
    """A body that the guard refuses is cleared like one that was answered."""
    gate = make_gate(Upstream(), key_file, flight_file=str(file), max_in_flight=SLOTS)
    asyncio.run(ask(gate, make_scope(), b"not JSON"))
    assert read_flights(file) == []


def test_field_names_and_lengths_but_no_value(file: Path) -> None:
    """Strings, lists and objects are recorded with their length, numbers by name only, and no value at all."""
    fields = {"prompt": SECRET, "stop": [SECRET] * 4, "logit_bias": {SECRET: 1}, "temperature": 0.7, SECRET: 1}
    flights = Flights(str(file), SLOTS)
    with flights.record("-", CHAT, 120, fields):
        [seen] = read_flights(file)
    assert seen.fields == "prompt(13), stop[4], logit_bias[1], temperature, 1 more"
    assert seen.request_id == "-"
    assert SECRET.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    "name", ["n" * 33, "a-b", "a b", "né", "", "a\tb", "a\nb", TOKEN], ids=lambda name: repr(name)[:12]
)
def test_a_name_that_is_not_plain_is_only_counted(file: Path, name: str) -> None:
    """Only short names of letters, digits and underscores are recorded: the names come from a client."""
    with Flights(str(file), SLOTS).record("a", CHAT, 1, {name: 1}):
        assert read_flights(file)[0].fields == "1 more"


def test_many_names_fit(file: Path) -> None:
    """A body with a hundred thousand fields, and the longest id, fit their slot."""
    fields = {f"{'n' * 24}{number:08}": "x" * number for number in range(100_000)}
    with Flights(str(file), SLOTS).record("i" * 64, CHAT, 10**12, fields):
        [seen] = read_flights(file)
    assert seen.request_id == "i" * 64
    assert seen.fields.startswith("n" * 24 + "00000000(0), ")


def test_after_the_engines_death_nothing_is_cleared(file: Path) -> None:
    """vLLM fails every request when its EngineCore dies, before the server ends: those must stay on record."""
    flights = Flights(str(file), SLOTS)
    with flights.record("answered before", CHAT, 1, {}):
        pass
    with flights.record("killed-it", CHAT, 1, {}):
        flights.engine_dead = lambda: True
    assert [each.request_id for each in read_flights(file)] == ["killed-it"]


def test_more_requests_than_slots(file: Path) -> None:
    """Without a free slot nothing is recorded, and nothing breaks; this can only happen after a death."""
    flights = Flights(str(file), 1)
    with flights.record("first", CHAT, 1, {}), flights.record("second", CHAT, 1, {}):
        assert [each.request_id for each in read_flights(file)] == ["first"]


def test_the_record_outlives_its_process(file: Path) -> None:
    """The requests of a process killed by SIGKILL can be read afterwards, the latest first."""
    program = textwrap.dedent(f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(INSIDE)!r})
        from servekit_guard.flight import Flights
        flights = Flights({str(file)!r}, {SLOTS})
        records = [flights.record(name, "/v1/completions", 7, {{"prompt": "x"}}) for name in ("one", "two")]
        for record in records:
            record.__enter__()
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert [(each.request_id, each.fields) for each in read_flights(file)] == [
        ("two", "prompt(1)"),
        ("one", "prompt(1)"),
    ]


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" + b"\t" * 100, b"a\tb\t\n", b"nan\tb\tc\td\te\n", b"1.0\tb\tc\t4\te", b"1.0\tb\xff\x01\tc\t4\te\n"],
)
def test_an_incomplete_record_is_skipped(file: Path, garbage: bytes) -> None:
    """A slot that was being written when its process ended is skipped."""
    file.write_bytes(garbage.ljust(SLOT_BYTES, b"\0"))
    assert read_flights(file) == []


def test_a_missing_file_ends_the_start(tmp_path: Path) -> None:
    """The guard does not start without its file; servekit reads nothing from a missing one."""
    with pytest.raises(FileNotFoundError):
        Flights(str(tmp_path / "none"), SLOTS)
    assert read_flights(tmp_path / "none") == []


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_the_running_server_records_and_ticks(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """On the real engine a stream is on record until it ends, and the event loop is measured meanwhile."""
    file = engine.guard.config_path.with_name(FLIGHT_FILE_NAME)
    body = requests.completion(max_tokens=1000, stream=True, ignore_eos=True)
    before = engine.counters()["event_loop"]
    wait_until(lambda: read_flights(file) == [], what="the end of earlier requests")
    headers = {"authorization": f"Bearer {engine.key}"}
    url = f"http://127.0.0.1:{engine.port}/v1/completions"
    stream = engine.pool.request("POST", url, json=body, headers=headers, preload_content=False)
    [flight] = read_flights(file)
    assert (flight.route, flight.body_bytes) == ("/v1/completions", len(json.dumps(body, separators=(",", ":"))))
    assert stream.data.rstrip().endswith(b"[DONE]")
    wait_until(lambda: read_flights(file) == [], what="the end of the request")
    after = engine.counters()["event_loop"]
    assert sum(after["ticks"]) > sum(before["ticks"]) > 0
    assert after["cpu_s"] > before["cpu_s"]
