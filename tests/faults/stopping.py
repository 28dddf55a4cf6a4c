"""Faults of a stop: signals, and drains that finish, time out or are cut short."""

import signal
from signal import SIGHUP, SIGINT, SIGTERM

from tests.faults.fault import DRAINED, Fault
from tests.faults.provoke import send, send_with_requests

FAULTS = (
    *(
        Fault(f"{number.name} while idle", DRAINED, 0, f"{number.name}: drained", provoke=send(number))
        for number in (SIGTERM, SIGINT, SIGHUP)
    ),
    Fault(
        "SIGTERM with 8 requests running",
        *(DRAINED, 0, "SIGTERM: draining, 8 running requests, at most 60 s to finish"),
        faults=("--slow-request-s", "3"),
        provoke=send_with_requests(8, SIGTERM, statuses={200}),
    ),
    Fault(
        "SIGTERM, the drain runs out",
        *(DRAINED, 8, "SIGTERM: the drain did not finish: 3 running requests cut after 1 s"),
        faults=("--slow-request-s", "30"),
        flags=("--drain-s", "1"),
        provoke=send_with_requests(3, SIGTERM, statuses={0}),
    ),
    Fault(
        "SIGTERM twice",
        *(DRAINED, 8, "SIGTERM while draining: 2 running requests cut"),
        faults=("--slow-request-s", "30"),
        provoke=send_with_requests(2, SIGTERM, SIGTERM, statuses={0}),
    ),
    Fault(
        "SIGTERM, then SIGINT",
        *(DRAINED, 8, "SIGINT while draining: 2 running requests cut"),
        faults=("--slow-request-s", "30"),
        provoke=send_with_requests(2, SIGTERM, SIGINT, statuses={0}),
    ),
    Fault(
        "SIGTERM, which the engine ignores",
        *(DRAINED, 8, "SIGTERM: killed, not drained after 10 s: no running requests cut"),
        faults=("--ignore-sigterm",),
        flags=("--drain-s", "0"),
        provoke=send(SIGTERM),
        within_s=120,
    ),
    Fault(
        "SIGTERM, and the guard does not answer",
        *(DRAINED, 0, "SIGTERM: drained"),
        faults=("--deaf-to-drain",),
        flags=("--drain-s", "6"),  # servekit waits half of it for the guard
        provoke=send(SIGTERM),
        within_s=120,
    ),
    Fault(
        "SIGTERM twice, and the guard does not answer",
        *(DRAINED, 8, "SIGTERM while draining: running requests cut"),
        faults=("--deaf-to-drain",),
        provoke=send(SIGTERM, SIGTERM),
        within_s=120,
    ),
    Fault(
        "SIGTERM, on which the engine crashes",
        *(DRAINED, 8, f"SIGTERM: the drain did not finish: killed by signal {signal.SIGSEGV:d}"),
        faults=("--crash-on-sigterm",),
        provoke=send(SIGTERM),
    ),
)
