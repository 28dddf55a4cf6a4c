"""One servekit for each run folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from servekit.errors import Finding, PreflightError
from servekit.file_trouble import make_folder
from servekit.serve.guard.keys import OWNER_ONLY_FOLDER

_LOCK: Final = "lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of a run: a second servekit would overwrite the guard's files while the first engine loads.

    The kernel frees it however this process ends. Raises PreflightError where another process holds it.
    """
    make_folder(folder, OWNER_ONLY_FOLDER)
    with (folder / _LOCK).open("w") as lock:
        if not _locks(lock):
            raise PreflightError([_held(folder)])
        yield


def held_by_another(folder: Path) -> Iterator[Finding]:
    """Yield a finding if another process holds the folder of a run. Creates nothing."""
    with suppress(FileNotFoundError), (folder / _LOCK).open() as lock:
        if not _locks(lock):
            yield _held(folder)


def _locks(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held(folder: Path) -> Finding:
    return Finding(
        "another servekit runs with this state folder and this port",
        str(folder),
        remedy="choose another --port or --state-dir, or stop the other one",
    )
