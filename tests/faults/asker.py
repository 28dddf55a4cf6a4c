"""Poll one probe without a pause, in a separate program, so that the tests' own work does not delay it.

usage: asker.py HOST PORT PATH

It raises its priority if permitted (nice -10), and prints JSON objects, one per line: `{"state", "status"}` for each
answer that differs from the previous one, and `{"seconds", "served_s", "waited_s"}` for each request slower than all
before it. These are the time the asker measured, the time servekit measured (its `Server-Timing`), and the time the
asker itself waited for a core. It exits when its standard input is closed.
"""

import contextlib
import json
import os
import select
import socket
import sys
import time
from pathlib import Path

_INTERVAL_S = 0.01
_TIMEOUT_S = 10


def main(host: str, port: int, path: str) -> None:
    """Poll until the standard input is closed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    last, slowest_s = None, 0.0
    while not select.select([sys.stdin], [], [], _INTERVAL_S)[0]:
        began_s, queued_s = time.monotonic(), queued()
        try:
            answer = ask(host, port, path)
        except OSError:
            continue
        seconds, waited_s = time.monotonic() - began_s, queued() - queued_s
        if b"\r\n\r\n" not in answer:
            continue
        head, text = answer.decode().split("\r\n\r\n", 1)
        seen = {"state": text.replace(":", " ").split()[0], "status": int(head.split()[1])}
        if seen != last:
            last = seen
            print(json.dumps(seen), flush=True)
        if seconds > slowest_s:
            slowest_s = seconds
            served_s = float(head.partition("dur=")[2].split()[0]) / 1000
            print(json.dumps({"seconds": seconds, "served_s": served_s, "waited_s": waited_s}), flush=True)


def ask(host: str, port: int, path: str) -> bytes:
    """Return a complete answer, headers and body; raises OSError if there is none."""
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def queued() -> float:
    """Return the seconds that this process was ready to run but waited for a core (schedstat in proc(5))."""
    return int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
