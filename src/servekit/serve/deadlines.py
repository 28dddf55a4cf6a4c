"""How long a start may take: as a whole, and in each of its phases."""

from collections.abc import Mapping
from typing import Final

from servekit.serve.status import Phase, Status

PHASE_LIMITS_S: Final[Mapping[Phase, float]] = {
    Phase.IMPORTS: 600,  # 8 s from a warm disk, minutes from a cold network file system
    Phase.ENGINE: 600,
    Phase.WEIGHTS: 1500,  # a download of 10 GB stands here too
    Phase.COMPILE: 1500,  # one operator measured 11 minutes in all for a cold start (vllm issue 49782)
    Phase.WARM_UP: 900,
    Phase.VERIFY: 300,
}
"""Seconds after which a phase counts as stuck, however much of the whole start's time is left."""


def deadline_of(status: Status, started_s: float, start_s: float) -> tuple[float, str]:
    """Return the monotonic second at which this start has failed, and in words which limit that is."""
    whole_s = started_s + start_s
    if status.starts:
        phase, since_s = status.starts[-1]
        limit_s = PHASE_LIMITS_S.get(phase)
        if limit_s is not None and since_s + limit_s < whole_s:
            return since_s + limit_s, f"phase {phase} was not over within {limit_s:g} s"
        return whole_s, f"not ready within {start_s:g} s, last seen in phase {phase}"
    return whole_s, f"not ready within {start_s:g} s"
