"""Files that the server writes through a shared mapping: the kernel keeps what was written, however a process ends."""

import mmap
import os
from pathlib import Path


def make_mapped_file(path: Path, size_bytes: int) -> None:
    """Create a new file (0600) before the start; called by servekit."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "r+b") as file:
        # Allocated, not only sized: a write into a hole of a full disk would end the server with SIGBUS.
        os.posix_fallocate(file.fileno(), 0, size_bytes)


def map_file(path: str | Path, size_bytes: int) -> mmap.mmap:
    """Map an existing file for reading and writing. Raises OSError or ValueError when it is missing or too short."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), "r+b") as file:
        return mmap.mmap(file.fileno(), size_bytes)
