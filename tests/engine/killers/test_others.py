"""Every field that the guard admits, in a loop beside plain greedy requests, whose tokens must not change."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from servekit.serve.guard.inside.servekit_guard.body.fields import ROUTES
from servekit.serve.guard.inside.servekit_guard.body.verdicts import Refused
from tests.engine.killers.case import CHAT, COMPLETIONS, MAKERS, MESSAGES, RESPONSES, Case, Target, send
from tests.engine.killers.conftest import target_of
from tests.engine.killers.stream import Token, compare, stream_once
from tests.engine.killers.values import sensible
from tests.harness.endpoint import Endpoint

CLIENTS = 3
BASELINES = 3
ANSWERED = frozenset({200, 400, 404})
FIELDS = {
    name: path
    for path in (MESSAGES, RESPONSES, COMPLETIONS, CHAT)
    for name, rule in ROUTES[path].items()
    if not isinstance(rule, Refused)
}
"""Each admitted field, with one of its routes."""
NEEDS: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "min_tokens": {"ignore_eos": True},
    "tools": {"tool_choice": "none"},
}
"""What these fields need to have an effect."""
NEVER_SERVED = frozenset({"suffix", "previous_response_id", "priority"})
"""With this profile, vLLM 0.20.2 answers 400 to every value except the empty one."""


@pytest.fixture(scope="module")
def demo(endpoint: Endpoint, engine_cache: object) -> Target:
    """The embedded demo as a client knows it."""
    del engine_cache
    return target_of(endpoint, endpoint.state_dir, wide=False)


@pytest.fixture(scope="module")
def expected(demo: Target) -> list[list[Token]]:
    """Streams beside as many plain requests."""

    def plain(_chaos: random.Random) -> Case:
        return Case("plain", lambda target: MAKERS[CHAT](model=target.model, temperature=0), CHAT)

    made = []
    for _ in range(BASELINES):
        with looped(demo, plain) as statuses:
            made.append(stream_once(demo))
        assert set(statuses) == {200}
    return made


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_changes_the_answers_of_others(demo: Target, expected: list[list[Token]], name: str) -> None:
    """A greedy stream beside requests with this field has the same tokens as beside plain requests."""
    path = FIELDS[name]

    def with_field(chaos: random.Random) -> Case:
        value = sensible(name, ROUTES[path][name], chaos, demo)
        fields = MAKERS[path](model=demo.model) | NEEDS.get(name, {}) | {name: value}
        return Case(name, lambda _target: fields, path)

    with looped(demo, with_field) as statuses:
        stream = stream_once(demo)
    assert set(statuses) <= ANSWERED, statuses
    assert 200 in statuses or name in NEVER_SERVED, "no value was served: the field was not tried"
    assert not (wrong := compare([stream], expected)), wrong


@contextmanager
def looped(target: Target, make: Callable[[random.Random], Case]) -> Iterator[list[int]]:
    """Send requests from several clients without a pause until the end of the block; the statuses are complete then."""
    over, statuses = threading.Event(), list[int]()

    def run(client: int) -> None:
        for number in itertools.count():
            case = make(random.Random(f"{client}:{number}"))
            statuses.append(send(target, case.request(target)).status)
            if over.is_set():
                return

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(run, client) for client in range(CLIENTS)]
        try:
            yield statuses
        finally:
            over.set()
    for each in running:
        each.result()
