"""The clients' keys, on servekit's side: made, checked, shown and rotated. The guard reads the same file.

A key file has one key a line; blank lines and what follows a `#` are left out. Nobody but its owner may
write it, and others may not read it.
"""

import os
import secrets
import tempfile
from pathlib import Path

from servekit.errors import ConfigurationError, Finding

from .inside.servekit_guard.keyring import KeyFileError, read_keys

KEY_FILE_NAME = "api_keys"
KEY_PREFIX = "sk-servekit-"
KEY_BYTES = 32
OWNER_ONLY = 0o600
OWNER_ONLY_FOLDER = 0o700
_HEADING = "# API keys of this endpoint, one a line. A change is taken up within a second, without a restart.\n"


def own_key_file(state_dir: Path) -> Path:
    """Return where servekit keeps the key it makes when none is configured."""
    return state_dir / KEY_FILE_NAME


def generate_key() -> str:
    """Return a new key with 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def load_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in the file, in its order; raises ConfigurationError with every mistake in it."""
    try:
        return read_keys(path)
    except KeyFileError as error:
        remedy = "see docs/security.md, or make a key file with `servekit key --new`"
        raise ConfigurationError(
            [Finding(problem.message, file=str(path), line=problem.line, remedy=remedy) for problem in error.problems]
        ) from error


def ensure_key_file(path: Path) -> bool:
    """Make the key file with one new key unless it exists, and tell whether it was made.

    Raises ConfigurationError when the file that exists cannot be used, or none can be made.
    """
    if path.exists():
        load_keys(path)
        return False
    _write(path, [generate_key()])
    return True


def rotate_key(path: Path, *, keep_old: bool = False) -> str:
    """Write a new key into the file and return it. keep_old: the keys there stay valid after the new one.

    The file is replaced in one step, so the guard never reads half of it. Comments in it are lost.
    """
    old_keys = load_keys(path) if keep_old and path.exists() else ()
    key = generate_key()
    _write(path, [key, *old_keys])
    return key


def _write(path: Path, keys: list[str]) -> None:
    try:
        path.parent.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
        # mkstemp makes the file 0600 from its first moment
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(_HEADING + "".join(f"{key}\n" for key in keys))
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        message = f"the key file cannot be written: {error.strerror or error}"
        remedy = "make the folder writable for this user, or name a key file with SERVEKIT_API_KEYS_FILE"
        raise ConfigurationError([Finding(message, file=str(path), remedy=remedy)]) from error
