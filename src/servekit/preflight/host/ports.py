"""Whether the ports are free, found out by binding them as nobody else may."""

import socket

from servekit.errors import Finding


def find_taken_ports(addresses: dict[str, tuple[str, int]]) -> list[Finding]:
    """Return a mistake for each flag whose (host, port) cannot be bound.

    vLLM 0.20.2 binds with SO_REUSEPORT: a second server on the same port starts, and connections are split between the
    two. So the port is tried here without it (entrypoints/openai/api_server.py, create_server_socket).
    """
    mistakes = []
    for flag, (host, port) in addresses.items():
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            mistakes.append(
                Finding(
                    subject=flag,
                    message=f"cannot listen on {host}:{port}: {error.strerror}",
                    remedy="choose another port or address, or stop what listens there",
                )
            )
    return mistakes
