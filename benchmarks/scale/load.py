"""Clients that send chat requests until they are told to stop; what happened to each, by the event it met."""

import http.client
import json
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

MODEL = "gemma4-demo"
STEADY = "steady"
_ANSWER_S = 180


@dataclass
class Load:
    """The clients' state; half of the requests are streams."""

    port: int
    key: str
    pause_s: float = 0.0
    """Mean of the pause of a client between two requests."""
    event: str = STEADY
    stopped: bool = False
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many requests ended in which way, by the event that was on when they ended."""
    longest_s: dict[str, float] = field(default_factory=dict)
    began_s: dict[int, float] = field(default_factory=dict)
    """When each client's request in flight began."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, seed: int) -> None:
        """Send one request after the other."""
        draw = random.Random(seed)
        while not self.stopped:
            stream = draw.choice((False, True))
            began_s = self.began_s[seed] = time.monotonic()
            try:
                outcome = self.ask(stream=stream, tokens=draw.choice((4, 16, 64)))
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome = type(error).__name__
            with self.lock:
                self.outcomes[self.event, f"{'stream' if stream else 'whole'}: {outcome}"] += 1
                self.longest_s[self.event] = max(self.longest_s.get(self.event, 0.0), time.monotonic() - began_s)
                del self.began_s[seed]
            time.sleep(draw.uniform(0, 2 * self.pause_s))

    def ask(self, *, stream: bool, tokens: int) -> str:
        """Send one request; return "ok", the status, or how its stream ended."""
        message = {"role": "user", "content": f"say {secrets.token_hex(3)}"}
        body = {"model": MODEL, "messages": [message], "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        try:
            status, data = self._send("POST", "/v1/chat/completions", json.dumps(body))
        except http.client.IncompleteRead:
            return "cut"
        if status != http.client.OK:
            return str(status)
        if not stream:
            return "ok" if json.loads(data)["usage"]["completion_tokens"] == tokens else "short"
        if '"error"' in data:
            return "error event"
        return "ok" if data.rstrip().endswith("data: [DONE]") else "cut"

    def stream(self, tokens: int) -> None:
        """Read one stream besides those of the clients."""
        outcome = self.ask(stream=True, tokens=tokens)
        with self.lock:
            self.outcomes[self.event, f"long stream: {outcome}"] += 1

    def status(self, method: str, path: str) -> int:
        """Return the status of a request without a body; 0 if there is no answer."""
        try:
            return self._send(method, path)[0]
        except (OSError, http.client.HTTPException):
            return 0

    def _send(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_S)
        try:
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    @contextmanager
    def during(self, event: str) -> Iterator[None]:
        """Name what happens meanwhile, until the last request that began meanwhile has ended."""
        self.event = event
        try:
            yield
        finally:
            now_s = time.monotonic()
            while any(began_s < now_s for began_s in list(self.began_s.values())):
                time.sleep(0.05)
            self.event = STEADY

    def failed(self, event: str) -> dict[str, int]:
        """Return the outcomes in an event that are not ok."""
        return {
            what: count for (when, what), count in self.outcomes.items() if when == event and not what.endswith(": ok")
        }

    @property
    def ended(self) -> int:
        """How many requests have ended."""
        return sum(self.outcomes.values())
