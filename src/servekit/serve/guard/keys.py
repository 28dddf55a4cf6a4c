"""The clients' keys on servekit's side: generated, checked, shown and rotated. The guard reads the same file.

`servekit_guard/key_lines.py` has the syntax of a line. Only its owner may write the file, and others may not read it.
"""

import contextlib
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from servekit.errors import ConfigurationError, Finding
from servekit.file_trouble import AS_OWNER, about, explain, find_trouble, keep_owner, or_elsewhere

from .inside.servekit_guard.key_lines import MIN_KEY_CHARS, NAME_WORD, Key, KeyFileError, parse_time, shown
from .inside.servekit_guard.keyring import permission_problem, read_key_lines

__all__ = ["NAME_WORD", "Key", "KeyFileError", "parse_time"]

KEY_PREFIX = "sk-servekit-"
OWNER_ONLY_FOLDER = 0o700
_HEADING = "# API keys, one per line (docs/usage.md). A change takes effect within a second, without a restart."


def own_key_file(state_dir: Path) -> Path:
    """Return the file for the key that servekit generates when none is configured."""
    return state_dir / "api_keys"


def load_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in the file, in its order; raises ConfigurationError with every mistake in it."""
    return tuple(load_key_lines(path))


def client_key(path: Path) -> str:
    """Return the key of the file for requests of servekit's own commands: a valid one, with the fewest limits.

    Raises ConfigurationError with every mistake in the file, or when all of its keys have expired.
    """
    valid = valid_keys(path, load_key_lines(path, manage=True))
    return min(valid, key=lambda text: (valid[text].routes != (), valid[text].in_flight is not None))


def valid_keys(path: Path, keys: Mapping[str, Key], name: str = "") -> dict[str, Key]:
    """Return those of the file's keys that are valid now, in its order; raises ConfigurationError if none is."""
    now_s = time.time()
    if valid := {text: key for text, key in keys.items() if not key.expired(now_s)}:
        return valid
    what = "every key of this name has expired" if name else "every key in it has expired"
    raise ConfigurationError([Finding(what, file=str(path), got=name, remedy="create one: servekit key --new")])


def load_key_lines(path: Path, *, manage: bool = False) -> dict[str, Key]:
    """Return each key in the file with its name and its limits; raises ConfigurationError with every mistake in it.

    manage: root may read a file that belongs to another user, the service's, whose it stays. The guard never does.
    """
    if why := find_trouble(path, private=True):
        raise ConfigurationError([Finding(file=str(path), **(keep_owner(why) if manage else why))])
    owner = path.stat().st_uid if manage and os.geteuid() == 0 and path.exists() else 0
    try:
        return read_key_lines(path, owner)
    except KeyFileError as error:
        otherwise = "see docs/usage.md, or create a key file with `servekit key --new`"
        remedy = _mending(path, owner, manage=manage) or otherwise
        raise ConfigurationError(
            [Finding(message, file=str(path), line=line, remedy=remedy) for line, message in error.problems.items()]
        ) from error


def _mending(path: Path, owner: int, *, manage: bool) -> str:
    """Return what makes owner and mode of the key file acceptable; empty if they are, or there is no file.

    owner: a user to whom it may belong, besides this user and root.
    """
    with contextlib.suppress(OSError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and permission_problem(status, owner):
            own = status.st_uid == os.geteuid()
            strange = status.st_uid not in {0, os.geteuid(), owner}
            if strange and manage:
                return AS_OWNER
            mode = "0440" if status.st_uid == 0 and not own else "0600"
            chown = f"sudo chown {os.geteuid()} {path} && " if strange else ""
            return f"run: {chown}{'' if own else 'sudo '}chmod {mode} {path}"
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


def rotate_key(path: Path, *, keep_old: bool = False, name: str = "", expires: str = "") -> str:
    """Write a new key of 256 random bits into the file and return it.

    It takes the place of the keys of this name, with their limits; without a name, of the keys that have none.
    keep_old: those stay valid, after the new one. All other lines stay as they are. expires: ISO 8601, as in the file.
    Raises ConfigurationError when the file cannot be read or written.
    """
    keys = _keys_to_keep(path)
    lines = path.read_text(encoding="ascii").splitlines() if keys else []
    replaced = [line for line in lines if (key := keys.get(_key_of(line))) and key.name == (name or shown(key.digest))]
    options = replaced[0].partition("#")[0].split()[1:] if replaced else []
    limits = [option for option in options if not option.startswith(("name=", "expires="))]
    new = KEY_PREFIX + secrets.token_urlsafe(32)
    words = [new, *([f"expires={expires}"] if expires else []), *limits]
    words += [f"name={name}"] if len(name) >= MIN_KEY_CHARS else ["", f"# {name}"] if name else []
    kept = lines if keep_old else [line for line in lines if line not in replaced]
    heading, rest = (kept[:1], kept[1:]) if kept and kept[0].startswith("#") else ([], kept)
    _replace(path, [*(heading or [_HEADING]), " ".join(words), *rest])
    return new


def revoke_key(path: Path, name: str) -> int:
    """Remove the keys of this name from the file and return their number; raises ConfigurationError if it cannot."""
    keys = load_key_lines(path, manage=True)
    revoked = {text for text, key in keys.items() if key.name == name}
    if not revoked:
        names = ", ".join(dict.fromkeys(key.name for key in keys.values()))
        raise ConfigurationError([Finding("no key has this name", file=str(path), got=name, remedy=f"it has {names}")])
    if len(revoked) == len(keys):
        remedy = "create another key first (servekit key --new --name NAME): the guard refuses a file without keys"
        raise ConfigurationError(
            [Finding("is the name of every key in the file", file=str(path), got=name, remedy=remedy)]
        )
    lines = path.read_text(encoding="ascii").splitlines()
    _replace(path, [line for line in lines if _key_of(line) not in revoked])
    return len(revoked)


def _key_of(line: str) -> str:
    return next(iter(line.partition("#")[0].split()), "")


def _keys_to_keep(path: Path) -> dict[str, Key]:
    """Return the keys in the file; none where it is missing or holds none. Raises rather than lose the keys of others.

    A file that strangers may have written is refused too: which of its keys are right, its owner must say.
    """
    try:
        return load_key_lines(path, manage=True) if os.path.exists(path) else {}  # noqa: PTH110 - never raises
    except ConfigurationError:
        with contextlib.suppress(OSError):
            if not any(map(_key_of, path.read_text(encoding="ascii", errors="replace").splitlines())):
                return {}
        raise


def _replace(path: Path, lines: list[str]) -> None:
    """Replace the file in one step, so that the guard never reads half of it."""
    try:
        write_private(path, "\n".join((*lines, "")), path.stat() if path.exists() else None)
    except OSError as error:
        why = keep_owner(explain(error, path.parent, "rwx"))
        why = or_elsewhere(why, "name a key file with SERVEKIT_API_KEYS_FILE")
        raise ConfigurationError([Finding(file=str(path), **why)]) from error


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
