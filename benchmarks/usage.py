"""CPU time that metering takes of the event loop for one request, with the request log on.

The gate with its accounts and the same gate without, alternately, over an application that gives vLLM's output
processor one request and answers it. The states of sequences stand in for vLLM's; the generated tokens cost nothing,
because an account reads their number once.
"""

import asyncio
import importlib
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from benchmarks.gate import BODIES, KEY, gate_scope
from benchmarks.programs import spread
from servekit.serve.guard.inside.servekit_guard.asgi import Message, Receive, Scope, Send
from servekit.serve.guard.inside.servekit_guard.gate import Gate
from servekit.serve.guard.inside.servekit_guard.guard_config import Rules
from servekit.serve.guard.inside.servekit_guard.usage.ledger import make_ledger
from servekit.serve.guard.inside.servekit_guard.usage.meter import Account
from servekit.serve.guard.inside.servekit_guard.usage.request_ring import make_ring

NAME = "usage"
ROUNDS = 15
REQUESTS = 2_000
KEYS = 12
PATH, BODY = BODIES["1,000 characters"]


class NoAccount(Account):
    """An account that costs what an object costs, and counts nothing."""

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def watch(self, receive: Receive) -> Receive:
        """Return what was given."""
        return receive


class Engine:
    """An application that gives each request to vLLM's output processor, and answers."""

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}
        self.output_processor = SimpleNamespace(request_states=self.states, add_request=self.add, process_outputs=len)

    def add(self, request: Any) -> None:
        """Keep a state for the request, as vLLM does."""
        stats = SimpleNamespace(num_generation_tokens=0, arrival_time=0.0, queued_ts=1.0, scheduled_ts=2.0)
        stats.first_token_ts, stats.first_token_latency = 0.0, 1.0
        self.states[request.request_id] = SimpleNamespace(
            request_id=request.request_id, request_index=0, prompt_len=7, stats=stats
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await receive()
        request = SimpleNamespace(request_id=scope["servekit.request_id"], mm_features=None)
        self.output_processor.add_request(request)
        state = self.states.pop(request.request_id)
        state.stats.first_token_ts, state.stats.num_generation_tokens = 3.0, 64
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def run(rounds: int | None) -> dict[str, Any]:
    """Return the microseconds of CPU time that metering adds to a request, in each round."""
    with tempfile.TemporaryDirectory(prefix="servekit-bench-") as name:
        folder = Path(name)
        (folder / "keys").touch(0o600)
        (folder / "keys").write_text("".join(f"{KEY}{number:02}  # team-{number}\n" for number in range(KEYS)))
        make_ledger(folder / "usage")
        make_ring(folder / "ring")
        module: Any = importlib.import_module("servekit.serve.guard.inside.servekit_guard.gate")
        taken: dict[type[Account], list[float]] = {Account: [], NoAccount: []}
        for _ in range(rounds or ROUNDS):
            for kind, values in taken.items():
                module.Account = kind
                values.append(asyncio.run(_spent_us(folder)))
        module.Account = Account
    added = [with_it - without for with_it, without in zip(*taken.values(), strict=True)]
    return {"added_us": [round(value, 1) for value in added], "whole_us": round(statistics.median(taken[Account]), 1)}


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    return [
        f"{'':<10}{'median':>9}{'best':>9}{'worst':>9} microseconds a request; {result['whole_us']} in all",
        f"{'metering':<10}{spread(result['added_us'], 1, '')}",
    ]


async def _spent_us(folder: Path) -> float:
    engine = Engine()
    rules = Rules(
        token_sha256="00" * 32,
        api_keys_file=str(folder / "keys"),
        max_in_flight=1024,
        max_buffered_bytes=1 << 30,
        usage_file=str(folder / "usage"),
        request_log_file=str(folder / "ring"),
    )
    gate = Gate(engine, rules)
    gate.meter.watch(engine)
    scope = gate_scope(PATH, BODY, f"{KEY}07")

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(_message: Message) -> None:
        return None

    began_s = time.process_time()
    for _ in range(REQUESTS):
        await gate(dict(scope), receive, send)
    return 1e6 * (time.process_time() - began_s) / REQUESTS
