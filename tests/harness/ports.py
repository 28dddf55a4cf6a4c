"""Ports for servers that must know theirs before they start."""

import random
import socket

_RANGE = range(15_000, 32_000)
"""Below the ports that the kernel gives to others: no outgoing connection and no port 0 takes one in between."""
_CHANCE = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on, and that this process has not had before."""
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
