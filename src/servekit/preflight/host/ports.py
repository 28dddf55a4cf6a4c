"""The addresses that servekit and the engine will listen on: whether they are free, and who has them."""

import errno
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from servekit.preflight.findings import Finding, error

_NET: Final = "self/net"
_LISTENS: Final = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def check_ports(addresses: Mapping[str, tuple[str, int]], proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Report each flag whose (host, port) cannot be bound.

    servekit binds without SO_REUSEPORT. vLLM 0.20.2 binds with it (entrypoints/openai/api_server.py,
    create_server_socket): a second server on the same port starts, and the kernel splits the connections between them.
    It binds minutes before it listens, and SO_REUSEADDR would not see it until then. So this option is used only where
    old connections of the port, which also stop a bind, are still there.
    """
    for flag, (host, port) in addresses.items():
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, bool(port_sockets(port, proc / _NET)))
                probe.bind((host, port))
        except OSError as problem:
            message, remedy = f"cannot listen on {host}:{port}: {problem.strerror}", "choose another port"
            if problem.errno == errno.EADDRINUSE:
                who, stop = _owner(port, proc)
                message, remedy = message + who, f"{stop}, or choose another port"
            elif problem.errno == errno.EACCES:
                remedy = "choose a port from 1024 on: lower ones need the capability CAP_NET_BIND_SERVICE"
            elif problem.errno == errno.EADDRNOTAVAIL or isinstance(problem, socket.gaierror):
                remedy = "choose an address of this host (ip address)"
            yield error("port-taken", message, subject=flag, remedy=remedy)


def _owner(port: int, proc: Path) -> tuple[str, str]:
    """Return who listens on the port, and how to stop it; only root sees the processes of others."""
    for process, words in _listeners(port, proc):
        if any(word.startswith(("servekit.", "servekit_guard.")) or Path(word).name == "servekit" for word in words):
            return f", by an endpoint of servekit (process {process})", "stop that endpoint"
        return f", by process {process} ({Path(words[0]).name})", f"stop that process (kill {process})"
    return "", "stop the program that listens there (sudo ss -ltnp)"


def _listeners(port: int, proc: Path) -> Iterator[tuple[str, list[str]]]:
    """Return the number and the command line of each process that listens on the port."""
    sockets = {f"socket:[{row[9]}]" for row in port_sockets(port, proc / _NET) or () if row[3] == _LISTENS}
    for process in sorted(proc.glob("[0-9]*"), key=lambda each: int(each.name)):
        try:
            if any(str(descriptor.readlink()) in sockets for descriptor in (process / "fd").iterdir()):
                yield process.name, (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # another user's, or it has just ended


def port_sockets(port: int, net: Path) -> list[list[str]] | None:
    """Return the fields of each socket of a local port, as proc(5)'s net/tcp lists them in the folder `net`.

    They listen, or are connections, open or just closed. None where the kernel does not report any.
    """
    found: list[list[str]] | None = None
    for table in ("tcp", "tcp6"):
        try:
            lines = (net / table).read_text(encoding="ascii", errors="replace").splitlines()[1:]
        except OSError:
            continue
        found = [*(found or ()), *(row for row in map(str.split, lines) if row[1].endswith(f":{port:04X}"))]
    return found
