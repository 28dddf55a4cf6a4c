"""The clients' keys: read from a file, kept as hashes, read again when the file changes."""

import hashlib
import hmac
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("vllm.servekit_guard")  # below "vllm", so that vLLM's handler prints it

MIN_KEY_CHARS = 20
"""Shorter keys can be guessed, or are the first half of a file that is still being written."""
MAX_KEY_CHARS = 512
MAX_FILE_BYTES = 65_536
CHECK_INTERVAL_S = 1.0


@dataclass(frozen=True)
class KeyProblem:
    """What is wrong with a key file. The text never repeats the file's content: it may be a key."""

    line: int
    """The line's number from 1; 0 when the whole file is meant."""
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


class KeyFileError(ValueError):
    """A key file that cannot be used, with everything that is wrong with it."""

    def __init__(self, problems: tuple[KeyProblem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def parse_keys(text: str) -> tuple[str, ...]:
    """Return the keys of a key file: one a line; blank lines and what follows a `#` are left out.

    Raises KeyFileError with every line that is no key, or when there is no key at all.
    """
    keys: dict[str, None] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        key = line.partition("#")[0].strip()
        if not key:
            continue
        if problem := _key_problem(key):
            problems.append(KeyProblem(number, problem))
        keys[key] = None
    if not keys:
        problems.append(KeyProblem(0, "there is no key in it"))
    if problems:
        raise KeyFileError(tuple(problems))
    return tuple(keys)


def read_keys(path: str | Path) -> tuple[str, ...]:
    """Read and check a key file. Raises KeyFileError, also when it cannot be read or others may change it."""
    try:
        with Path(path).open("rb") as file:
            problem = permission_problem(os.fstat(file.fileno()))
            if problem:
                raise KeyFileError((KeyProblem(0, problem),))
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError((KeyProblem(0, error.strerror or str(error)),)) from error
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError((KeyProblem(0, f"it is larger than {MAX_FILE_BYTES} bytes"),))
    try:
        return parse_keys(content.decode("ascii"))
    except UnicodeDecodeError as error:
        raise KeyFileError((KeyProblem(0, "it holds bytes that are not ASCII"),)) from error


def permission_problem(status: os.stat_result) -> str | None:
    """Say why a file with this status must not hold keys, or None.

    Its group may read it, because that is how Kubernetes hands a secret to a non-root user; nobody but the
    owner may write it, others may not read it, and it belongs to this user or to root.
    """
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o027:
        return f"its mode is {mode:04o}, so others may read or change it; make it 0600 (or 0440)"
    if status.st_uid not in {0, os.geteuid()}:
        return f"it belongs to user {status.st_uid}, neither to this one ({os.geteuid()}) nor to root"
    return None


class Keyring:
    """The keys that are valid now. A changed file is noticed within a second, a broken one changes nothing."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; raises KeyFileError, so that an engine without a usable key never serves."""
        self._path = Path(path)
        self._clock = clock
        self._checked_at = clock()
        self._seen = _fingerprint(self._path)
        self._hashes = _hashes(read_keys(self._path))
        self.reloads = 0
        self.refused_reloads = 0
        self.problem: str | None = None
        """Why the file as it is now was not taken; None while the keys in memory are the file's."""

    def __len__(self) -> int:
        return len(self._hashes)

    def admits(self, presented: bytes) -> bool:
        """Tell whether this is one of the keys, in a time that does not depend on which one or how near."""
        self._reload_if_changed()
        presented_hash = hashlib.sha256(presented).digest()
        admitted = False
        for known_hash in self._hashes:
            admitted |= hmac.compare_digest(presented_hash, known_hash)
        return admitted

    def _reload_if_changed(self) -> None:
        now = self._clock()
        if now - self._checked_at < CHECK_INTERVAL_S:
            return
        self._checked_at = now
        seen = _fingerprint(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._hashes = _hashes(read_keys(self._path))
        except KeyFileError as error:
            self.refused_reloads += 1
            self.problem = str(error)
            logger.warning("The key file %s changed but cannot be used, the old keys stay valid: %s", self._path, error)
            return
        self.reloads += 1
        self.problem = None
        logger.info("The key file %s changed: %d key(s) are valid now", self._path, len(self._hashes))


def _key_problem(key: str) -> str | None:
    if not all("!" <= character <= "~" for character in key):
        return "a key is one word of printable ASCII characters"
    if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS:
        return f"a key has {MIN_KEY_CHARS} to {MAX_KEY_CHARS} characters (got {len(key)})"
    return None


def _hashes(keys: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.encode("ascii")).digest() for key in keys)


def _fingerprint(path: Path) -> tuple[int, ...]:
    """Everything about the file that changes with it; the change time also moves with its permissions."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
