"""The clients' keys: read from a file, kept as hashes, and read again when the file changes."""

import hashlib
import hmac
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("vllm.servekit_guard")  # below "vllm", so that vLLM's handler prints it

MIN_KEY_CHARS = 20
"""Shorter keys can be guessed, or are part of a file that is still being written."""
MAX_KEY_CHARS = 512
MAX_FILE_BYTES = 65_536
CHECK_INTERVAL_S = 1.0


class KeyFileError(ValueError):
    """A key file cannot be used. The messages never repeat the file's content: it may be a key."""

    def __init__(self, problems: dict[int, str]) -> None:
        """`problems`: what is wrong, by line number from 1; 0 for the whole file."""
        texts = (f"line {line}: {message}" if line else message for line, message in problems.items())
        super().__init__("; ".join(texts))
        self.problems = problems


def parse_keys(text: str) -> tuple[str, ...]:
    """Return the keys of a key file: one per line; blank lines and everything after a `#` are ignored.

    Raises KeyFileError with every line that is not a key, or when there is no key.
    """
    words = [line.partition("#")[0].strip() for line in text.splitlines()]
    problems = {number: problem for number, key in enumerate(words, start=1) if key and (problem := _key_problem(key))}
    if not any(words):
        problems[0] = "it contains no key"
    if problems:
        raise KeyFileError(problems)
    return tuple(dict.fromkeys(filter(None, words)))


def read_keys(path: str | Path) -> tuple[str, ...]:
    """Read and check a key file. Raises KeyFileError, also when it cannot be read or others may change it."""
    try:
        with Path(path).open("rb") as file:
            problem = permission_problem(os.fstat(file.fileno()))
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
    return parse_keys(text)


def permission_problem(status: os.stat_result) -> str | None:
    """Return why a file with this status must not hold keys, or None.

    Its group may read it, because Kubernetes gives a secret to a non-root user that way. Only the owner may write it,
    others may not read it, and it must belong to this user or to root.
    """
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o027:
        return f"its mode {mode:04o} lets others read or change it; set it to 0600 (or 0440)"
    if status.st_uid not in {0, os.geteuid()}:
        return f"it belongs to user {status.st_uid} and not to this user ({os.geteuid()}) or root"
    return None


class Keyring:
    """The keys that are valid now. A changed file takes effect within a second; an unusable one changes nothing."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; raises KeyFileError, so that an engine without a usable key does not start."""
        self._path = Path(path)
        self._clock = clock
        self._checked_at = clock()
        self._seen = _fingerprint(self._path)
        self._hashes = _hashes(read_keys(self._path))
        self.reloads = 0
        self.refused_reloads = 0
        self.problem: str | None = None
        """Why the current file is not used; None while the keys in memory are the file's."""

    def __len__(self) -> int:
        return len(self._hashes)

    def admits(self, presented: bytes) -> bool:
        """Return whether this is one of the keys. The time does not depend on which key it is, or how similar."""
        self._reload_if_changed()
        presented_hash = hashlib.sha256(presented).digest()
        matches = [hmac.compare_digest(presented_hash, known_hash) for known_hash in self._hashes]
        return any(matches)  # after all comparisons

    def _reload_if_changed(self) -> None:
        now = self._clock()
        if now - self._checked_at < CHECK_INTERVAL_S:
            return
        self._checked_at = now
        before, self._seen = self._seen, _fingerprint(self._path)
        if self._seen == before:
            return
        try:
            self._hashes = _hashes(read_keys(self._path))
        except KeyFileError as error:
            self.refused_reloads += 1
            self.problem = str(error)
            logger.warning("the key file %s changed and cannot be used; the old keys stay valid: %s", self._path, error)
            return
        self.reloads += 1
        self.problem = None
        logger.info("the key file %s changed: %d key(s) are valid now", self._path, len(self._hashes))


def _key_problem(key: str) -> str | None:
    if not all("!" <= character <= "~" for character in key):
        return "a key must be one word of printable ASCII characters"
    if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS:
        return f"a key must have {MIN_KEY_CHARS} to {MAX_KEY_CHARS} characters (got {len(key)})"
    return None


def _hashes(keys: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.encode("ascii")).digest() for key in keys)


def _fingerprint(path: Path) -> tuple[int, ...]:
    """Return what changes with the file; the change time also changes with its permissions."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
