"""No request may end or stall the endpoint, or change another request's answer."""

import pytest

from tests.engine.killers.case import Case, Group, Target
from tests.engine.killers.catalogue import GROUPS, baselines, is_alive, run
from tests.engine.killers.figures import HELD_S, held
from tests.engine.killers.stream import Token
from tests.harness.endpoint import Endpoint


@pytest.fixture(scope="module")
def expected(target: Target) -> list[list[Token]]:
    """Streams beside plain requests, recorded before anything else is sent."""
    return baselines(target)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_engine_lives_and_others_notice_nothing(
    attacked: Endpoint, target: Target, expected: list[list[Token]], group: Group
) -> None:
    """Each request is refused with a reason or answered correctly, and does not affect the engine or its neighbour."""
    assert is_alive(target), "the engine has ended in an earlier group"
    core, held_before = attacked.roles()["core"], held(attacked, HELD_S)
    outcome = run(target, group, expected)
    assert not outcome.others + outcome.wrong, "\n".join(outcome.others + outcome.wrong)
    assert attacked.roles()["core"] == core
    assert held(attacked, HELD_S) == held_before, f"the event loop was held for more than {HELD_S} s"


def test_a_name_is_one_case() -> None:
    """A name identifies one case, in reports and where its rule is removed; some cases are sent more than once."""
    cases: dict[str, Case] = {}
    for group in GROUPS:
        for case in group.cases:
            assert cases.setdefault(case.name, case) is case, case.name
