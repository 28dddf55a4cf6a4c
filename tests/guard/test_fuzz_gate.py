"""Random requests to the gate alone; `python -m benchmarks.fuzz_guard` sends a million, guided by coverage."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guard.fuzzed_gate import SEEDS, FuzzedGate, describe, mutate

INPUTS = 10_000


@pytest.fixture
def fuzzed(tmp_path: Path) -> Iterator[FuzzedGate]:
    """A gate in front of an application that is not vLLM."""
    gate = FuzzedGate(tmp_path)
    yield gate
    gate.close()


def test_the_gate_refuses_every_input_with_a_message(fuzzed: FuzzedGate) -> None:
    """No exception but the application's, nothing passes without a key, slots are released, and none takes long."""
    chaos, corpus, statuses = random.Random(1), list(SEEDS), Counter[int]()
    for number in range(INPUTS):
        data = mutate(chaos.choice(corpus), chaos)
        statuses[fuzzed.try_input(data)] += 1
        if number % 10 == 0 and len(data) < 4_000:
            corpus[len(SEEDS) + number // 10 % 500 :] = [data]
    assert statuses[200] > INPUTS // 50, statuses
    assert statuses[400] > INPUTS // 10, statuses
    assert statuses[404] > INPUTS // 100, statuses


def test_ordinary_requests_pass(fuzzed: FuzzedGate) -> None:
    """The seeds are ordinary requests: a fuzzer that starts from refused ones would find little."""
    assert [fuzzed.try_input(seed) for seed in SEEDS[:1]] == [200]
    assert describe(SEEDS[0])[0]["path"] == "/v1/chat/completions"
