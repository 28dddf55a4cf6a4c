"""How long a start may take, in total and per phase."""

from servekit.serve.phases import PHASE_LIMITS_S, deadline_of
from servekit.serve.status import Phase, Status


def test_whole_start_is_the_limit_while_phases_are_quick() -> None:
    """A phase that has just begun does not change the deadline of the whole start."""
    status = Status(starts=((Phase.IMPORTS, 100.0),))
    assert deadline_of(status, 100.0, 60.0) == (160.0, "not ready within 60 s, last seen in phase imports")


def test_a_stuck_phase_ends_a_long_start_early() -> None:
    """A phase with less time left than the whole start determines the deadline and is named."""
    status = Status(starts=((Phase.IMPORTS, 100.0), (Phase.VERIFY, 200.0)))
    limit_s = PHASE_LIMITS_S[Phase.VERIFY]
    assert deadline_of(status, 100.0, 5000.0) == (200.0 + limit_s, f"phase verify did not end within {limit_s:g} s")


def test_every_phase_of_the_engine_has_a_limit() -> None:
    """No phase of the engine may last forever."""
    assert set(PHASE_LIMITS_S) == set(Phase) - {Phase.PREFLIGHT}
