"""Why this user cannot use a file or a folder: the part of its path that stops the user, and what to run.

Links are followed as the kernel follows them (path_resolution(7)), so the part may lie elsewhere: a blob of the hub's
cache, a parent that others may not enter.
"""

import errno
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NotRequired, TypedDict

from servekit.errors import ConfigurationError, Finding

_LINKS: Final = 40
"""Linux follows no more symbolic links in one path."""
_OF_THE_PATH: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_BITS: Final = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}
_WORDS: Final = {
    errno.EROFS: ("the file system of {place} is read-only", "mount it writable, or choose another folder"),
    errno.ENOTDIR: ("{place} is not a folder", "correct the path"),
    errno.EISDIR: ("is a folder, not a file", "name a file"),
    errno.ELOOP: ("its symbolic links lead in a circle", "correct the links"),
    errno.ENAMETOOLONG: ("the name is longer than the file system allows", "choose a shorter one"),
    errno.ENOSPC: ("no space is left on its file system", "free some space (df -h) or inodes (df -i) there"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or raise the quota"),
    errno.EIO: ("the disk or the network file system reports an error", "look at the kernel's log (dmesg)"),
    errno.ESTALE: ("the network file system no longer has it", "mount the file system again"),
}
_SYSTEM_FOLDERS: Final = ("/etc", "/media", "/mnt", "/opt", "/proc", "/srv", "/sys", "/usr/local", "/var/cache")
AS_OWNER: Final = "run this command as its owner, or with sudo"
_NOT_THE_MODE: Final = "owner and mode allow it: look for an ACL (getfacl), AppArmor, SELinux or a sticky folder"


class Trouble(TypedDict):
    """What a finding says about a file; the owner and the mode in `got`."""

    message: str
    got: NotRequired[str]
    remedy: str


def find_trouble(path: Path, need: str = "r", *, private: bool = False) -> Trouble | None:
    """Return what keeps this user from using `path`, without trying; None for a missing file too.

    `need` are the rights, of `rwx`, that the use takes; `rwx` is a folder that servekit creates where it is missing.
    `private`: nobody else may read the file.
    """
    try:
        found = _obstacle(path, need)
    except OSError as problem:
        return explain(problem, path, need, private=private)
    return _described(path, *found, need, private=private) if found else None


def explain(problem: OSError, path: Path, need: str = "r", *, private: bool = False) -> Trouble:
    """Return what the system's error about `path` means for this user."""
    if problem.errno in _OF_THE_PATH:
        with suppress(OSError):
            if found := _obstacle(path, need):
                return _described(path, *found, need, private=private)
    if problem.errno in {errno.EACCES, errno.EPERM}:
        return {"message": f"permission denied for {_user()} on {path}", "remedy": _NOT_THE_MODE}
    said = problem.strerror or str(problem)
    return _worded(problem.errno or 0, path, said[:1].lower() + said[1:])


def finding_of(problem: OSError) -> Finding:
    """Return the finding of an error that nothing else has explained."""
    if not isinstance(problem.filename, str | bytes):
        return Finding(problem.strerror or str(problem))
    path = Path(os.fsdecode(problem.filename))
    return Finding(file=str(path), **explain(problem, path, "rw"))


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that names no file: a write to a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Create a folder that this user can write to, unless there is one. Raises ConfigurationError with the reason."""
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        why = find_trouble(folder, "rwx")
    except OSError as problem:
        why = explain(problem, folder, "rwx")
    if why:
        raise ConfigurationError([Finding(file=str(folder), **or_elsewhere(why))])


def or_elsewhere(why: Trouble, other: str = "choose another folder") -> Trouble:
    """Add to the remedy that another place would do too."""
    remedy = ", or ".join(filter(None, (why["remedy"], other if other not in why["remedy"] else "")))
    return {**why, "remedy": remedy}


def keep_owner(why: Trouble) -> Trouble:
    """Return the trouble for a command that looks into a service's files, whose owner and mode must not change."""
    return {**why, "remedy": AS_OWNER} if why["remedy"].startswith(("run: sudo chown", "run: sudo chmod")) else why


def _obstacle(path: Path, need: str) -> tuple[Path, str] | None:
    """Return the first part of the path that this user cannot use and the rights it lacks; none: it is no folder."""
    here, parts, links = Path("/"), [*path.absolute().parts[1:]], 0
    while parts:
        if not here.is_dir():
            return here, ""
        if lacks := _lacking(here, "x"):
            return here, lacks
        part = parts.pop(0)
        inner = here.parent if part == ".." else here / part
        if inner.is_symlink():
            target, links = inner.readlink(), links + 1
            if links > _LINKS:
                return None
            here = Path("/") if target.is_absolute() else here
            parts = [*target.parts[target.is_absolute() :], *parts]
        elif inner.exists():
            here = inner
        else:
            lacks = _lacking(here, "w") if "w" in need else ""
            return (here, lacks) if lacks else None
    if need == "rwx" and not here.is_dir():
        return here, ""
    lacks = _lacking(here, f"{need}x" if here.is_dir() and "x" not in need else need)
    return (here, lacks) if lacks else None


def _lacking(place: Path, need: str) -> str:
    return "".join(right for right in need if not os.access(place, _BITS[right], effective_ids=True))


def _described(path: Path, place: Path, lacks: str, need: str, *, private: bool) -> Trouble:
    if not lacks:
        return _worded(errno.ENOTDIR, place)
    if "w" in lacks and os.statvfs(place).f_flag & os.ST_RDONLY:
        return _worded(errno.EROFS, place)
    status = place.stat()
    mode = stat.S_IMODE(status.st_mode)
    groups = {os.getegid(), *os.getgroups()}
    who, shift = ("u", 6) if status.st_uid == os.geteuid() else ("g", 3) if status.st_gid in groups else ("o", 0)
    wanted = sum(_BITS[right] for right in lacks)
    allowed = mode >> shift & wanted == wanted
    return {
        "message": f"permission denied for {_user()} on {place}",
        "got": f"owner {status.st_uid}:{status.st_gid}, mode {mode:04o}",
        "remedy": _NOT_THE_MODE if allowed else _command(path, place, lacks, who, need, private=private),
    }


def _command(path: Path, place: Path, lacks: str, who: str, need: str, *, private: bool) -> str:
    """Return what to run; `who` is the class of chmod(1) that this user has at `place`."""
    quoted, user = shlex.quote(str(place)), os.geteuid()
    if who == "u":
        return f"run: chmod u+{lacks} {quoted}"
    if "w" in lacks and need == "rwx" and not path.exists():
        return f"run: sudo install -d -o {user} {shlex.quote(str(path.absolute()))}"
    if "w" in lacks and place.is_dir() and (need != "rwx" or _is_shared(place)):
        return f"run: sudo install -d -o {user} {shlex.quote(str(place / 'servekit'))}, and use that folder"
    if "w" in lacks or (private and place.is_file()):
        return f"run: sudo chown {'-R ' if place.is_dir() else ''}{user} {quoted}"
    if "r" in lacks and place.is_dir():
        return f"run: sudo chmod -R {who}+rX {quoted}"
    return f"run: sudo chmod {who}+{lacks} {quoted}"


def _is_shared(place: Path) -> bool:
    """Whether others need the folder as it is: one of the system's, or somebody's home, or what holds homes."""
    homes = [Path(entry.pw_dir) for entry in pwd.getpwall() if entry.pw_uid != os.geteuid()]
    return str(place) in _SYSTEM_FOLDERS or any(place in (home, *home.parents) for home in homes)


def _worded(code: int, place: Path, otherwise: str = "") -> Trouble:
    message, remedy = _WORDS.get(code, (otherwise, ""))
    return {"message": message.format(place=place), "remedy": remedy}


def _user() -> str:
    user = os.geteuid()
    try:
        return f"user {user} ({pwd.getpwuid(user).pw_name})"
    except KeyError:
        return f"user {user}"
