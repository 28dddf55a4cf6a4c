"""Every group of cases, and how to run one beside a greedy stream."""

import http.client
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.engine.killers import content, protocol, sampling, structured
from tests.engine.killers.case import CHAT, Case, Group, Target, fire, plain
from tests.engine.killers.stream import Token, compare, slowest_s, stream_once, streaming

GROUPS = (*structured.GROUPS, *sampling.GROUPS, *content.GROUPS, *protocol.GROUPS)
BASELINES = 3
PLAIN = plain("a plain request", CHAT, added={"temperature": 0}, statuses=frozenset({200}))


@dataclass(frozen=True)
class Outcome:
    """The result of a group."""

    wrong: list[str]
    """What is wrong with its answers."""
    others: list[str]
    """How the group affected the engine and the streams beside it."""
    statuses: list[int]
    slowest_token_s: float
    """Longest time that a stream beside it waited for a token."""


def baselines(target: Target) -> list[list[Token]]:
    """Return greedy streams that ran beside plain requests, which are sent one after the other like a group's."""
    made = []
    for _ in range(BASELINES):
        with ThreadPoolExecutor(1) as pool:
            stream = pool.submit(stream_once, target)
            wrong = []
            while not stream.done():
                wrong += fire(target, PLAIN)[1]
        assert not wrong, wrong
        made.append(stream.result())
    return made


def run(target: Target, group: Group, expected: list[list[Token]]) -> Outcome:
    """Send a group's cases one after the other beside a stream; return the outcome."""
    statuses: list[int] = []
    wrong: list[str] = []
    others: list[str] = []
    with streaming(target) as stream:
        for case in group.cases:
            answer, mistakes = fire(target, case)
            statuses.append(answer.status)
            wrong += mistakes
            if answer.status != 200 and not is_alive(target):
                others.append(f"{case.name}: the engine has ended")
                break
    others += [*stream.problems, *compare(stream.runs, expected)]
    return Outcome(wrong, others, statuses, slowest_s(stream.runs))


def is_alive(target: Target) -> bool:
    """Return whether the engine reports that it is healthy."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def find(name: str) -> Case:
    """Return the case with this name; raises StopIteration if there is none."""
    return next(case for group in GROUPS for case in group.cases if case.name == name)
