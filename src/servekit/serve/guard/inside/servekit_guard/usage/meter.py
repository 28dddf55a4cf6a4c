"""Who uses what: an account for each request in flight, and the tokens that EngineCore has produced for it.

vLLM 0.20.2 has a `RequestState` for each sequence (`v1/engine/output_processor.py`), whatever the route, the number of
choices, and whether the client reads. Its `stats` grow in the same call as vLLM's own counters
(`v1/metrics/stats.py`, `update_from_output`): the tokens, and `first_token_ts` when the prompt is counted. So an
account keeps the `stats` of its request's sequences and reads them when it ends, once a second before that, and after
that as long as the engine works for a client that has left.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple, Self

from ..asgi import Message, Receive
from ..intake import ClientGoneError
from ..refusals import RefusedError
from .ledger import OWN, Ledger, Usage
from .request_ring import Ended, Ring

BOOK = signal.SIGUSR2
"""What the keeper (`serve/engine/keeper.py`) sends before it kills everything."""
TICK_S = 1.0
"""How often the tokens of requests in flight are counted: what a SIGKILL of the server may lose."""
SEQUENCES_A_TICK = 4_000
"""At most, so that a tick takes about a millisecond; the others' turn comes at the next ticks."""
_CELL = {name: number for number, name in enumerate(Usage._fields)}
_PROMPT, _OUTPUT, _IMAGES, _TIME, _NOW = (
    _CELL[name] for name in ("prompt_tokens", "output_tokens", "images", "in_flight_us", "in_flight")
)
States = Mapping[str, Any]
_account: ContextVar["Account | None"] = ContextVar("servekit_account", default=None)


class Meter:
    """All accounts; one object per server, on its event loop."""

    def __init__(
        self, ledger: Ledger, ring: Ring | None = None, engine_dead: Callable[[], bool] = lambda: False
    ) -> None:
        self.ledger = ledger
        self.ring = ring
        self.in_flight: Counter[str] = Counter()
        """Requests in flight by name."""
        self.states: States = {}
        """vLLM's states of the sequences that EngineCore works on."""
        self.open: dict[Account, None] = {}
        self.engine_dead = engine_dead
        self._moved_s = time.monotonic()
        self._ticking = False

    def watch(self, engine: Any) -> None:
        """See each sequence that vLLM's engine client (`AsyncLLM`) gives to EngineCore."""
        processor = engine.output_processor
        self.states = states = processor.request_states
        add_request = processor.add_request

        def add_and_see(request: Any, *arguments: Any, **named: Any) -> None:
            add_request(request, *arguments, **named)
            account = _account.get()
            if account is not None:
                state = states[request.request_id]
                account.sequences.append(Sequence(state.request_id, state.prompt_len, state.stats))
                if state.request_index == 0:  # the choices of one prompt have its images together
                    account.images += len(request.mm_features or ())
                if account not in self.open:  # a task that outlives its request
                    self.open[account] = None
                    self.start_ticking()

        process_outputs = processor.process_outputs

        def process_and_see(*arguments: Any, **named: Any) -> Any:
            self._moved_s = time.monotonic()
            return process_outputs(*arguments, **named)

        processor.add_request = add_and_see
        processor.process_outputs = process_and_see

    def quiet_s(self) -> float:
        """Return the seconds since EngineCore gave its last output."""
        return time.monotonic() - self._moved_s

    def start_ticking(self) -> None:
        """Tick while there are accounts."""
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        left = SEQUENCES_A_TICK
        for account in list(islice(self.open, SEQUENCES_A_TICK)):
            if left <= 0:
                break
            left -= 1 + len(account.sequences)
            account.count()
            del self.open[account]
            if not account.over():
                self.open[account] = None  # behind the others
        self._ticking = False
        if self.open:
            self.start_ticking()

    def close_on_signal(self) -> None:
        """Close at `BOOK`: in a turn of the running loop, so that it meets no account half counted."""
        asyncio.get_running_loop().add_signal_handler(BOOK, self.close)

    def close(self) -> None:
        """Count everything and end this process, before it does anything that would not be counted."""
        for account in self.open:
            account.count()
        self.ledger.close()
        os.kill(os.getpid(), signal.SIGKILL)


def fail_stream(make_event: Callable[..., str], *arguments: Any, **named: Any) -> str:
    """Count the request as failed whose stream vLLM ends with this error event, with status 200.

    It does so when its engine dies or anything else fails; `/v1/responses` raises the exception instead.
    """
    account = _account.get()
    if account is not None:
        account.cut = account.cut or "failed"
    return make_event(*arguments, **named)


class Sequence(NamedTuple):
    """What is kept of a `RequestState`: the rest of it may be large, and vLLM lets it go with the last token."""

    request_id: str
    prompt_len: int
    stats: Any


@dataclass(slots=True, eq=False)
class Account:
    """One request: what it has used so far, and how it ended."""

    meter: Meter
    name: str
    request_id: str = ""
    route: str = ""
    sequences: list[Sequence] = field(default_factory=list)
    status: int = 0
    """The HTTP status, once the answer has begun."""
    stream: bool = False
    images: int = 0
    _counted: tuple[int, int, int] = (0, 0, 0)
    """Tokens of the prompts and of the answers, and images, that are in the counters already."""
    _counted_s: float = 0.0
    _began_s: float = 0.0
    _ended_s: float = 0.0
    _wall_s: float = 0.0
    _place: int = 0
    _outcome: str = ""
    """Empty until the request has ended."""
    cut: str = ""
    """The outcome of a request that the client or vLLM broke off, whichever came first."""
    _token: Any = None

    def __enter__(self) -> Self:
        meter = self.meter
        self._token = _account.set(self)
        self._wall_s, self._began_s = time.time(), time.monotonic()
        self._counted_s = self._began_s
        self._place = meter.ledger.place(self.name)
        meter.ledger.cells[self._place + _NOW] += 1
        meter.in_flight[self.name] += 1
        meter.open[self] = None
        meter.start_ticking()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        meter, cells = self.meter, self.meter.ledger.cells
        _account.reset(self._token)
        self._ended_s = time.monotonic()
        if isinstance(error, RefusedError):
            self.status = error.refusal.status
        self._outcome = self._ending(error)
        cells[self._place + _NOW] -= 1
        cells[self._place + _CELL[self._outcome]] += 1
        meter.in_flight[self.name] -= 1
        if not meter.in_flight[self.name]:
            del meter.in_flight[self.name]
        self.count()
        if self.over():
            del meter.open[self]

    def begin_answer(self, status: int) -> None:
        """Take the status of the answer."""
        self.status = status

    def watch(self, receive: Receive) -> Receive:
        """Return a `receive` that sees the client leave before the engine has done its work."""

        async def receive_and_see() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and (not self.status or self._unfinished()):
                self.cut = self.cut or "cancelled"
            return message

        return receive_and_see

    def count(self) -> None:
        """Add what was used since the last call to the counters of the name."""
        prompt = output = 0
        for _, prompt_len, stats in self.sequences:
            output += stats.num_generation_tokens
            if stats.first_token_ts:
                prompt += prompt_len
        cells, place, before = self.meter.ledger.cells, self._place, self._counted
        cells[place + _PROMPT] += prompt - before[0]
        cells[place + _OUTPUT] += output - before[1]
        cells[place + _IMAGES] += self.images - before[2]
        now_s = self._ended_s or time.monotonic()
        cells[place + _TIME] += int(1e6 * (now_s - self._counted_s))
        self._counted, self._counted_s = (prompt, output, self.images), now_s

    def over(self) -> bool:
        """Return whether the request has ended and the engine no longer works for it; put it into the log then."""
        if not self._outcome or (self._unfinished() and not self.meter.engine_dead()):
            return False
        if self.meter.ring is not None and self.name != OWN:
            self.meter.ring.put(self._line())
        return True

    def _unfinished(self) -> bool:
        states = self.meter.states
        return any(sequence.request_id in states for sequence in self.sequences)

    def _ending(self, error: BaseException | None) -> str:
        if isinstance(error, RefusedError):
            return "refused"
        if self.cut or isinstance(error, (ClientGoneError, asyncio.CancelledError)):
            return self.cut or "cancelled"
        if error is not None or not self.status or self.status >= 500 or self.meter.engine_dead():  # noqa: PLR2004
            return "failed"
        return "refused" if self.status >= 400 else "ok"  # noqa: PLR2004

    def _line(self) -> Ended:
        stats = [sequence.stats for sequence in self.sequences]
        queued_s = [each.scheduled_ts - each.queued_ts for each in stats if each.scheduled_ts]
        first_s = [each.arrival_time + each.first_token_latency - self._wall_s for each in stats if each.first_token_ts]
        prompt, output, images = self._counted
        return Ended(
            f"{self._wall_s:.3f}",
            self.request_id,
            self.name,
            self.route,
            str(self.status or ""),
            self._outcome,
            str(prompt),
            str(output),
            str(images),
            f"{max(queued_s):.4f}" if queued_s else "",
            f"{min(first_s):.4f}" if first_s else "",
            f"{self._ended_s - self._began_s:.4f}",
            "stream" if self.stream else "",
        )
