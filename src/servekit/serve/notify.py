"""Readiness for systemd: sd_notify(3), one datagram to the socket that NOTIFY_SOCKET names."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from servekit.serve.status import Phase, State, Status

_EXTENSION_US = 2 * 3600 * 1_000_000
"""Time for the rest of a start after a download, however long that took. servekit itself ends one that stands still."""


def notify(status: Status, *, environ: Mapping[str, str] = os.environ) -> None:
    """Report a change to the service manager; does nothing where there is none, or where it does not listen.

    `systemctl status` shows the text. systemd expects READY=1 once and ignores it afterwards.
    """
    if not (address := environ.get("NOTIFY_SOCKET", "")):
        return
    text = f"{status.state}: {status.phase or status.reason}"
    sign = {State.READY: "READY=1\n", State.DRAINING: "STOPPING=1\n"}.get(status.state, "")
    if status.phase is Phase.DOWNLOAD:
        text = f"{status.state}: {status.detail}"
        sign = f"EXTEND_TIMEOUT_USEC={_EXTENSION_US}\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager, suppress(OSError):
        # A leading @ stands for the null byte of an abstract address; a line break would begin another assignment.
        place = f"\0{address[1:]}" if address[0] == "@" else address
        manager.sendto(f"{sign}STATUS={' '.join(text.split())}".encode(errors="replace"), place)
