"""Ports for servers that need to know theirs before they start."""

import random
import socket

_RANGE = range(15_000, 32_000)
"""Below the kernel's ephemeral range, so that no outgoing connection and no bind to port 0 takes one in between."""
_CHANCE = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port on loopback that is free and that this process has not been given before."""
    while True:
        port = _CHANCE.choice(_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
