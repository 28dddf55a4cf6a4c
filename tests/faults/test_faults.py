"""Every fault in the tables: states, both probes over time, exit code, message, and no process left behind."""

import time
from collections.abc import Callable, Sequence

import pytest

from tests.faults import before_start, real, serving, starting, stopping
from tests.faults.fault import READY, Fault, liveness_in, readiness_in
from tests.faults.launch import Launch
from tests.faults.probes import Answer
from tests.faults.report import Row

_FAULTS = (*before_start.FAULTS, *starting.FAULTS, *serving.FAULTS, *stopping.FAULTS, *real.FAULTS)
_SLOWEST_S = 10.0
"""Detects a probe that hangs, not one that is slow: benchmarks/soak.py measures how fast the probes are."""


def _parameter(fault: Fault) -> object:
    marks = [pytest.mark.engine, pytest.mark.timeout(600)] if fault.engine == "real" else []
    return pytest.param(fault, id=f"{fault.engine}-{fault.name}", marks=marks)


@pytest.mark.parametrize("fault", [_parameter(fault) for fault in _FAULTS])
def test_fault(fault: Fault, launch: Callable[[Fault], Launch], record_property: Callable[[str, object], None]) -> None:
    """The endpoint reports this fault correctly while it lives, exits as expected, and leaves no process behind."""
    made = launch(fault)
    check = fault.provoke(made)
    began_s = time.monotonic()
    code = made.end(fault.within_s)
    seconds = time.monotonic() - began_s
    left = made.left()
    found = [line for line in made.lines if fault.message in line]
    row = Row(
        *(fault.name, fault.engine, made.probes.ready, made.probes.live, code, seconds, made.probes.slowest),
        *(len(left), found[-1] if found else ""),
    )
    record_property("fault", list(row.cells()))
    assert code == fault.exit_code, "\n".join(made.lines)
    assert found, "\n".join(made.lines)
    _assert_answers(made.probes.ready, [(state, readiness_in(state)) for state in fault.states])
    _assert_answers(made.probes.live, [(state, liveness_in(state)) for state in fault.states])
    assert made.probes.slowest.seconds < _SLOWEST_S
    assert not left
    for each in (check, made.check):
        if each is not None:
            each()


def _assert_answers(seen: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """Compare the answers over time: none is unexpected, the order is right, and `ready` is present if expected.

    Any other state may be shorter than the pause between two requests, and so be missing.
    """
    assert [answer for answer in expected if answer in seen] == list(seen)
    assert [READY in answer for answer in seen].count(True) == [READY in answer for answer in expected].count(True)
