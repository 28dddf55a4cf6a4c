"""One servekit for each run folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servekit.errors import Finding, PreflightError
from servekit.file_trouble import make_folder
from servekit.serve.guard.keys import OWNER_ONLY_FOLDER


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of a run: a second servekit would overwrite the guard's files while the first engine loads.

    The kernel frees it however this process ends. Raises PreflightError where another process holds it.
    """
    make_folder(folder, OWNER_ONLY_FOLDER)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PreflightError(
                [
                    Finding(
                        "another servekit runs with this state folder and this port",
                        str(folder),
                        remedy="choose another --port or --state-dir, or stop the other one",
                    )
                ]
            ) from error
        yield
