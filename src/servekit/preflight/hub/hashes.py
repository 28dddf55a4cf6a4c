"""The files of a cached hub model against their hashes.

huggingface_hub names each file of its cache by the hash that the hub gave for it: large files by the SHA-256 of their
contents, small ones by the SHA-1 that git gives a blob ("Manage huggingface_hub cache-system"). No network is needed.
"""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from servekit.preflight.findings import Finding, error, note
from servekit.preflight.hub.hub_program import digest

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_AT_ONCE: Final = 4
"""Files hashed at once; hashlib releases the interpreter's lock, a core hashes some 1.5 GB/s."""


def check_hashes(folder: Path, model: str) -> Iterator[Finding]:
    """Read every file of the model in `folder` and compare it with the hash that its name in the cache is.

    A folder that is not part of a hub cache has no hashes: a note.
    """
    files = [(path, path.resolve().name) for path in sorted(folder.rglob("*")) if path.is_file()]
    named = [(path, name) for path, name in files if _SHA256.fullmatch(name) or _GIT_SHA1.fullmatch(name)]
    if not named:
        why = "not a snapshot of the hub's cache" if folder.is_dir() else "not in the cache"
        yield note("hashes-unknown", f"{why}: no hashes to compare with", subject=model)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for (path, wanted), got in zip(named, pool.map(lambda each: _hash(*each), named), strict=True):
            if got != wanted:
                yield error(
                    "hash-mismatch",
                    f"is damaged: its hash is {got[:12]}..., the hub's is {wanted[:12]}...",
                    file=str(path),
                    remedy=f"rm {path.resolve()} {path}, and start again: servekit downloads it anew",
                )


def _hash(path: Path, wanted: str) -> str:
    # SHA-1 is git's choice: it finds damage here and protects from nobody.
    sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    return digest(path, hashlib.sha256() if _SHA256.fullmatch(wanted) else sha1)
