"""The files of a cached hub model against their hashes.

huggingface_hub names each file of its cache by the hash that the hub gave for it: large files by the SHA-256 of their
contents, small ones by the SHA-1 that git gives a blob ("Manage huggingface_hub cache-system"). No network is needed.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from servekit.preflight.findings import Finding, error, note

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_PIECE_BYTES: Final = 8 << 20
_AT_ONCE: Final = 4
"""Files hashed at once; hashlib releases the interpreter's lock, a core hashes some 1.5 GB/s."""


def check_hashes(folder: Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Iterator[Finding]:
    """Read every file of the checkpoint in `folder` and compare it with the hash that its name in the cache is.

    `progress` gets the bytes read and their total. A folder that is not part of a hub cache has no hashes: a note.
    """
    files = [(path, path.resolve().name) for path in sorted(folder.rglob("*")) if path.is_file()]
    named = [(path, name) for path, name in files if _SHA256.fullmatch(name) or _GIT_SHA1.fullmatch(name)]
    if not named:
        yield note(
            "hashes-unknown", "not a snapshot of the hub's cache: no hashes to compare with", subject=str(folder)
        )
        return
    total, done = sum(path.stat().st_size for path, _ in named), 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for (path, wanted), got in zip(named, pool.map(lambda each: _hash(*each), named), strict=True):
            done += path.stat().st_size
            progress(done, total)
            if got != wanted:
                yield error(
                    "hash-mismatch",
                    f"is damaged: its hash is {got[:12]}..., the hub's is {wanted[:12]}...",
                    subject=str(path),
                    remedy=f"delete {path.resolve()} and start again: servekit downloads it anew",
                )


def _hash(path: Path, wanted: str) -> str:
    size = path.stat().st_size
    # SHA-1 is git's choice: it finds damage here and protects from nobody.
    digest = hashlib.sha256() if len(wanted) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # noqa: PLR2004
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
