"""How many connections a port holds, as the kernel tells it: the only count once a server has stopped listening."""

from pathlib import Path

_ESTABLISHED = "01"
"""The state's number in proc(5)'s net/tcp; a connection whose client has hung up has another."""
_TABLES = ("net/tcp", "net/tcp6")


def count_connections(port: int, *, proc: Path = Path("/proc/self")) -> int | None:
    """Return the number of clients connected to `port` on this host; None where the kernel does not tell."""
    found: int | None = None
    for table in _TABLES:
        try:
            rows = (proc / table).read_text(encoding="ascii", errors="replace").splitlines()[1:]
        except OSError:
            continue
        local_states = (row.split()[1:4:2] for row in rows)
        found = (found or 0) + sum(
            state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port for local, state in local_states
        )
    return found
