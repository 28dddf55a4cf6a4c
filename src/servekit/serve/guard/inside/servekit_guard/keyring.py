"""The clients' keys: read from a file, kept as hashes, and read again when the file changes."""

import hashlib
import hmac
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from .key_lines import Key, KeyFileError, parse_lines

logger = logging.getLogger("vllm.servekit_guard")  # below "vllm", so that vLLM's handler prints it

MAX_FILE_BYTES = 65_536
CHECK_INTERVAL_S = 1.0


def read_key_lines(path: str | Path, owner: int = 0) -> dict[str, Key]:
    """Read and check a key file. Raises KeyFileError, also when it cannot be read or others may change it.

    owner: a user to whom it may belong, besides this user and root.
    """
    try:
        with Path(path).open("rb") as file:
            problem = permission_problem(os.fstat(file.fileno()), owner)
            content = b"" if problem else file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            problem = f"it is larger than {MAX_FILE_BYTES} bytes"
        text = content.decode("ascii")
    except OSError as error:
        problem = error.strerror or repr(error)
    except UnicodeDecodeError:
        problem = "it contains bytes that are not ASCII"
    if problem:
        raise KeyFileError({0: problem})
    return parse_lines(text)


def permission_problem(status: os.stat_result, owner: int = 0) -> str | None:
    """Return why a file with this status must not hold keys, or None.

    Its group may read it, because Kubernetes gives a secret to a non-root user that way. Only the owner may write it,
    others may not read it, and it must belong to this user, to root or to `owner`.
    """
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o027:
        return f"its mode {mode:04o} lets others read or change it; set it to 0600 (or 0440)"
    if status.st_uid not in {0, os.geteuid(), owner}:
        return f"it belongs to user {status.st_uid} and not to this user ({os.geteuid()}) or root"
    return None


class Keyring:
    """The keys that are valid now. A changed file takes effect within a second; an unusable one changes nothing."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; raises KeyFileError, so that an engine without a usable key does not start."""
        self._path = Path(path)
        self._clock = clock
        self._checked_at = clock()
        self._seen = fingerprint(self._path)
        self._keys = tuple(read_key_lines(self._path).values())
        self.reloads = 0
        self.refused_reloads = 0
        self.problem: str | None = None
        """Why the current file is not used; None while the keys in memory are the file's."""

    def __len__(self) -> int:
        """Return how many keys are valid."""
        now_s = time.time()
        return sum(not key.expired(now_s) for key in self._keys)

    def admits(self, presented: bytes) -> bool:
        """Return whether this is one of the keys."""
        return self.find(presented) is not None

    def find(self, presented: bytes) -> Key | None:
        """Return this key, if it is one. The time does not depend on which key it is, or how similar."""
        self.reload_if_changed()
        digest = hashlib.sha256(presented).digest()
        matches = [key for key in self._keys if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches else None  # after all comparisons

    def reload_if_changed(self) -> None:
        """Read the file again if it has changed; look at most once in `CHECK_INTERVAL_S`."""
        now = self._clock()
        if now - self._checked_at < CHECK_INTERVAL_S:
            return
        self._checked_at = now
        before, self._seen = self._seen, fingerprint(self._path)
        if self._seen == before:
            return
        try:
            self._keys = tuple(read_key_lines(self._path).values())
        except KeyFileError as error:
            self.refused_reloads += 1
            self.problem = str(error)
            logger.warning("the key file %s changed and cannot be used; the old keys stay valid: %s", self._path, error)
            return
        self.reloads += 1
        self.problem = None
        logger.info("the key file %s changed: %d key(s) are valid now", self._path, len(self))


def fingerprint(path: Path) -> tuple[int, ...]:
    """Return what changes with the file; the change time also changes with its permissions."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
