"""Thousands of drawn requests from several clients, and what must hold during and after them."""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.engine.killers.case import Answer, Case, Target, judge, send
from tests.engine.killers.catalogue import is_alive
from tests.engine.killers.drawn import draw

CLIENTS = 16


@dataclass
class Barrage:
    """The result of a barrage of requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Wrong answers: the request's seed and number, what is wrong, and the request's minimised body."""


def bombard(target: Target, seed: int, numbers: Sequence[int]) -> Barrage:
    """Send these requests of a seed's sequence from several clients; stop once the engine has ended."""
    seen = Barrage()

    def one(number: int) -> None:
        if seen.statuses[0] >= CLIENTS:  # the endpoint no longer answers
            return
        case = draw(seed, number, target)
        answer = send(target, case.request(target), answer_s=120)
        seen.statuses[answer.status] += 1
        if wrong := mistakes(target, case, answer):
            least = minimise(target, case) if len(seen.wrong) < CLIENTS else case
            seen.wrong.append(f"{case.name} {case.path}: {wrong[0]}: {least.body(target)[:600]!r}")

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, numbers))
    return seen


def mistakes(target: Target, case: Case, answer: Answer) -> list[str]:
    """Return what is wrong with an answer; a stream that began with 200 can still report an error."""
    wrong = judge(target, case, answer)
    if answer.status == 200 and b'"error": {' in answer.body and b"data:" in answer.body:
        wrong.append(f"an error within a stream: {answer.body[-200:]!r}")
    return wrong


def minimise(target: Target, case: Case) -> Case:
    """Remove one field after the other while the answer stays wrong; needs a running engine."""
    try:
        fields = json.loads(case.body(target))
    except (ValueError, RecursionError):
        return case
    if not isinstance(fields, dict):
        return case
    for name in list(fields):
        fewer = {other: value for other, value in fields.items() if other != name}
        if name.startswith("max_") or not is_alive(target):
            continue
        if mistakes(target, made := _with(case, fewer), send(target, made.request(target))):
            fields = fewer
    return _with(case, fields)


def _with(case: Case, fields: dict[str, Any]) -> Case:
    body = json.dumps(fields).encode()
    return Case(case.name, lambda _target: body, case.path, case.statuses)
