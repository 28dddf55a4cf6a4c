"""The clients' keys on servekit's side: generated, checked, shown and rotated. The guard reads the same file.

A key file has one key per line; blank lines and everything after a `#` are ignored. Only its owner may write it, and
others may not read it.
"""

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from servekit.errors import ConfigurationError, Finding
from servekit.file_trouble import about, explain, find_trouble, or_elsewhere

from .inside.servekit_guard.keyring import KeyFileError, permission_problem, read_keys

KEY_PREFIX = "sk-servekit-"
OWNER_ONLY_FOLDER = 0o700
_HEADING = "# API keys of this endpoint, one per line. A change takes effect within a second, without a restart."


def own_key_file(state_dir: Path) -> Path:
    """Return the file for the key that servekit generates when none is configured."""
    return state_dir / "api_keys"


def load_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in the file, in its order; raises ConfigurationError with every mistake in it."""
    if why := find_trouble(path, private=True):
        raise ConfigurationError([Finding(file=str(path), **why)])
    try:
        return read_keys(path)
    except KeyFileError as error:
        remedy = _mending(path) or "see docs/security.md, or create a key file with `servekit key --new`"
        raise ConfigurationError(
            [Finding(message, file=str(path), line=line, remedy=remedy) for line, message in error.problems.items()]
        ) from error


def _mending(path: Path) -> str:
    """Return what makes the guard accept the key file's owner and mode; empty if they are right, or there is none."""
    with contextlib.suppress(OSError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and permission_problem(status):
            own = status.st_uid == os.geteuid()
            mode = "0440" if status.st_uid == 0 and not own else "0600"
            owner = f"sudo chown {os.geteuid()} {path} && " if status.st_uid not in {0, os.geteuid()} else ""
            return f"run: {owner}{'' if own else 'sudo '}chmod {mode} {path}"
    return ""


def ensure_key_file(path: Path) -> bool:
    """Create the key file with one new key unless it exists; return whether it was created.

    Raises ConfigurationError when the existing file cannot be used, or when none can be created.
    """
    if path.exists():
        load_keys(path)
        return False
    rotate_key(path)
    return True


def rotate_key(path: Path, *, keep_old: bool = False) -> str:
    """Write a new key of 256 random bits into the file and return it.

    keep_old: the existing keys stay valid, after the new one. The file is replaced in one step, so that the guard
    never reads half of it. Comments in it are lost. Raises ConfigurationError when the file cannot be read or written.
    """
    old_keys = load_keys(path) if keep_old and path.exists() else ()
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    try:
        write_private(path, "\n".join((_HEADING, key, *old_keys, "")), path.stat() if path.exists() else None)
    except OSError as error:
        why = or_elsewhere(explain(error, path.parent, "rwx"), "name a key file with SERVEKIT_API_KEYS_FILE")
        raise ConfigurationError([Finding(file=str(path), **why)]) from error
    return key


def write_private(path: Path, text: str, before: os.stat_result | None = None) -> None:
    """Write a file (0600) in one step. It replaces an older file or a link, so no reader ever sees half of it.

    before: the owner and the group's right to read, which are kept: a container's user may read the file of another.
    """
    path.parent.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # with mode 0600
    try:
        with about(path), os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if before is not None:
                with contextlib.suppress(PermissionError):  # only root may give a file away
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), before.st_mode & 0o640 | 0o400)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
