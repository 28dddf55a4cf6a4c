"""How long a start may take, in total and per phase."""

import pytest

from servekit.serve.download import Download
from servekit.serve.phases import DEFAULT_START_S, PHASE_LIMITS_S, STALL_S, deadline_of
from servekit.serve.status import Phase, Status
from servekit.settings import Settings

ADVICE = "raise SERVEKIT_START_S, or look at the engine's last lines"


def test_whole_start_is_the_limit_while_phases_are_quick() -> None:
    """A phase that has just begun does not change the deadline of the whole start."""
    status = Status(starts=((Phase.PREFLIGHT, 90.0), (Phase.IMPORTS, 100.0), (Phase.ENGINE, 110.0)))
    assert deadline_of(status, 60.0) == (160.0, f"not ready within 60 s, last seen in phase engine; {ADVICE}")


@pytest.mark.parametrize(("start_s", "factor"), [(600.0, 1), (1800.0, 1), (5400.0, 3)])
def test_a_stuck_phase_ends_a_long_start_early(start_s: float, factor: int) -> None:
    """A phase with less time left than the whole start determines the deadline; a longer start gives it longer."""
    status = Status(starts=((Phase.IMPORTS, 100.0), (Phase.VERIFY, 200.0)))
    limit_s = factor * PHASE_LIMITS_S[Phase.VERIFY]
    assert deadline_of(status, start_s) == (
        200.0 + limit_s,
        f"phase verify did not end within {limit_s:g} s; {ADVICE}",
    )


def test_an_engine_whose_phases_are_hidden_has_the_whole_start() -> None:
    """With a log level that hides the phases the engine seems to import until it answers: no limit ends it early."""
    status = Status(starts=((Phase.IMPORTS, 100.0),))
    assert deadline_of(status, 1800.0)[0] == 1900.0


def test_a_download_has_time_while_bytes_arrive() -> None:
    """A download ends when it stands still, with what keeps it, never for its length; then the engine's time begins."""
    status = Status(starts=((Phase.DOWNLOAD, 100.0),), download=Download(moved_s=9000.0, problem="the hub fails"))
    assert deadline_of(status, 60.0) == (
        9000.0 + STALL_S,
        f"the download has stood still for {STALL_S:g} s: the hub fails",
    )
    status = Status(starts=((Phase.DOWNLOAD, 100.0), (Phase.IMPORTS, 9100.0)))
    assert deadline_of(status, 60.0)[0] == 9160.0


def test_every_phase_has_a_limit() -> None:
    """Each phase in which the engine has told something has a limit of its own, for the default start time."""
    assert set(PHASE_LIMITS_S) == set(Phase) - {Phase.PREFLIGHT, Phase.DOWNLOAD, Phase.IMPORTS}
    assert Settings().start_s == DEFAULT_START_S
