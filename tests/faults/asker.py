"""Ask one probe without a pause: a program of its own, so that nothing of the tests' own work delays it.

usage: asker.py HOST PORT PATH

It runs before others where it may (nice -10), and prints one JSON object a line: `{"state", "status"}` for each answer
that differs from the one before, `{"seconds", "served_s", "waited_s"}` for each question that took longer than any
before: as the asker measured it, as servekit measured it (its `Server-Timing`), and how much of it the asker itself
waited for a core. It ends when its standard input does.
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
    """Ask until nobody listens any more."""
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
    """Return a whole answer, headers and body; raises OSError where there is none."""
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def queued() -> float:
    """Return the seconds this process was ready to run and did not (proc(5) calls the file schedstat)."""
    return int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
