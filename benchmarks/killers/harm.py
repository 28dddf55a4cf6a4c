"""The harm that a request does to an endpoint and to its other clients."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from tests.engine.killers.case import CHAT, Case, Group, Target, chat, send
from tests.engine.killers.catalogue import baselines, is_alive, run
from tests.engine.killers.content import picture, png
from tests.engine.killers.figures import held, longest_held_s
from tests.engine.killers.stream import slowest_s
from tests.harness.endpoint import Endpoint

Seen = dict[str, Any]
NO_HARM = "no harm"
STALL_S = 1.0
"""A server that does not answer `/health` for longer than this is blocked; two busy cores stay below it."""


@dataclass
class Health:
    """The longest time of `/health`, and every status other than 200."""

    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def harm(endpoint: Endpoint, target: Target, cases: tuple[Case, ...]) -> Seen:
    """Send the cases beside a greedy stream; return what happened to the server and to the stream."""
    expected = baselines(target)
    before = held(endpoint)
    with asked(target) as health:
        outcome = run(target, Group("", cases), expected)
    return {
        "statuses": outcome.statuses,
        "slowest_health_s": round(health.slowest_s, 1),
        "slowest_token_s": round(outcome.slowest_token_s, 1),
        "slowest_token_before_s": round(slowest_s(expected), 1),
        "held_s": longest_held_s(endpoint) if is_alive(target) and held(endpoint) > before else 0.0,
        "others": outcome.others,
    }


def wrong_image(_endpoint: Endpoint, target: Target) -> Seen:
    """Send two images under one uuid; return whether the second is answered from the first."""

    def said(grey: int, **members: str) -> tuple[int, object]:
        part = picture(f"data:image/png;base64,{png(grey=grey)}", **members)
        body = chat([part], model=target.model, temperature=0, max_tokens=16, ignore_eos=True)
        answer = send(target, Case("", lambda _target: body, CHAT).request(target))
        found = answer.json()
        return answer.status, found["choices"][0]["message"]["content"] if answer.status == HTTPStatus.OK else found

    black, white = said(0)[1], said(255)[1]
    said(0, uuid="u")
    status, second = said(255, uuid="u")
    confused = second == black != white
    others = ["the second client is answered from the first one's image"] if confused else []
    return {"statuses": [status], "others": others}


@contextmanager
def asked(target: Target) -> Iterator[Health]:
    """Request `/health` ten times a second until the end of the block."""
    health, over = Health(), threading.Event()

    def ask() -> None:
        while not over.wait(0.1):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=180)
            try:
                connection.request("GET", "/health")
                status = str(connection.getresponse().status)
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
            finally:
                connection.close()
            health.slowest_s = max(health.slowest_s, time.monotonic() - began)
            if status != "200":
                health.wrong.append(status)
                return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield health
    finally:
        over.set()
        thread.join()


def verdict(record: Seen) -> str:
    """Describe the harm; NO_HARM when there was none."""
    seen = []
    if record["exit"] is not None:
        seen.append(f"the endpoint ended (exit {record['exit']})")
    if record.get("slowest_health_s", 0) > STALL_S:
        seen.append(f"/health silent for {record['slowest_health_s']:.0f} s")
    if record.get("held_s"):
        seen.append(f"the event loop held for {record['held_s']:.1f} s")
    if record.get("slowest_token_s", 0) > max(STALL_S, 3 * record.get("slowest_token_before_s", 0)):
        seen.append(f"the stream beside it silent for {record['slowest_token_s']:.1f} s")
    if record["others"] and record["exit"] is None:
        seen.append(record["others"][0])
    if any(status >= HTTPStatus.INTERNAL_SERVER_ERROR for status in record["statuses"]):
        seen.append("500")
    return "; ".join(seen) or NO_HARM
