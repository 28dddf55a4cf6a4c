"""Which part of a path stops a user, and what to run: decided without the command line, as root and as another user."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from servekit.errors import ConfigurationError
from servekit.file_trouble import about, explain, find_trouble, finding_of, make_folder

STRANGER = 10001


@pytest.fixture
def tree() -> Iterator[Path]:
    """`a/b/file`, and a link to it in another folder, where every parent can be entered."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        tree.chmod(0o755)
        (tree / "a/b").mkdir(parents=True)
        (tree / "a/b/file").write_text("x")
        (tree / "links").mkdir()
        (tree / "links/link").symlink_to("../a/b/file")
        yield tree


@pytest.fixture
def stranger(tree: Path) -> Iterator[None]:  # noqa: ARG001 - which belongs to root
    """Be another user for the test, as a container's user is another one than its host's."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.setegid(STRANGER)
    os.seteuid(STRANGER)
    yield
    os.seteuid(0)
    os.setegid(0)


@pytest.mark.parametrize(
    ("denied", "mode", "path", "need", "remedy"),
    [
        ("a/b/file", 0o600, "a/b/file", "r", "run: sudo chmod o+r {}"),
        ("a/b/file", 0o600, "links/link", "r", "run: sudo chmod o+r {}"),
        ("a/b/file", 0o644, "a/b/file", "rw", "run: sudo chown 10001 {}"),
        ("a/b", 0o700, "links/link", "r", "run: sudo chmod o+x {}"),
        ("a", 0o700, "a/b/cache/deep", "rwx", "run: sudo chmod o+x {}"),
        ("a/b", 0o711, "a/b", "r", "run: sudo chmod -R o+rX {}"),
        ("a/b", 0o744, "a/b", "r", "run: sudo chmod o+x {}"),
        ("a/b", 0o755, "a/b", "rwx", "run: sudo chown -R 10001 {}"),
        ("a/b", 0o755, "a/b/new", "rwx", "run: sudo install -d -o 10001 {}/new"),
        ("a/b", 0o755, "a/b/new", "rw", "run: sudo install -d -o 10001 {}/servekit, and use that folder"),
    ],
)
def test_the_part_that_denies(
    tree: Path, denied: str, mode: int, path: str, need: str, remedy: str, request: pytest.FixtureRequest
) -> None:
    """The message names the user and the very folder or file that stops it, with the command that mends it."""
    (tree / denied).chmod(mode)
    request.getfixturevalue("stranger")
    why = find_trouble(tree / path, need)
    assert why == {
        "message": f"permission denied for user 10001 on {tree / denied}",
        "got": f"owner 0:0, mode {mode:04o}",
        "remedy": remedy.format(tree / denied),
    }
    assert explain(PermissionError(errno.EACCES, "x"), tree / path, need) == why


@pytest.mark.usefixtures("stranger")
def test_a_secret_gets_another_owner_not_another_mode(tree: Path) -> None:
    """A key is never made readable for everyone."""
    os.seteuid(0)
    (tree / "a/b/file").chmod(0o600)
    os.seteuid(STRANGER)
    why = find_trouble(tree / "a/b/file", private=True)
    assert why is not None
    assert why["remedy"] == f"run: sudo chown 10001 {tree}/a/b/file"
    os.seteuid(0)
    (tree / "a").chmod(0o700)
    os.seteuid(STRANGER)
    why = find_trouble(tree / "a/b/file", private=True)
    assert why is not None
    assert why["remedy"] == f"run: sudo chmod o+x {tree}/a", "a folder keeps its owner"


@pytest.mark.usefixtures("stranger")
def test_every_command_it_names_mends_it(tree: Path) -> None:
    """Running the remedies one after the other, as root, ends with a path that the user can use."""
    os.seteuid(0)
    for name, mode in (("a/b/file", 0o600), ("a/b", 0o700), ("a", 0o700)):
        (tree / name).chmod(mode)
    for path, need in ((tree / "links/link", "r"), (tree / "a/b", "r"), (tree / "a/b/cache it", "rwx")):
        for _ in range(5):
            os.seteuid(STRANGER)
            why = find_trouble(path, need)
            os.seteuid(0)
            if why is None:
                break
            command = why["remedy"].removeprefix("run: ").removeprefix("sudo ")
            subprocess.run(command, shell=True, check=True)  # noqa: S602 - quoted for a shell, which is what is tested
        assert why is None
    os.seteuid(STRANGER)
    assert (tree / "links/link").read_text() == "x"
    (tree / "a/b/cache it/new").write_text("y")


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("place", ["/", "/var", "/usr", "/var/cache", "/srv"])
def test_nothing_takes_a_system_folder_away(place: str) -> None:
    """A folder that others need keeps its owner: the remedy is one inside it."""
    why = find_trouble(Path(place), "rwx")
    assert why is not None
    assert why["remedy"] == f"run: sudo install -d -o 10001 {Path(place) / 'servekit'}, and use that folder"


@pytest.mark.usefixtures("stranger")
def test_nothing_takes_a_home_away(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's home keeps its owner, and so does the folder of all homes; this user's own may change it."""
    entries = [
        SimpleNamespace(pw_uid=1000, pw_dir=str(tree / "a/b")),
        SimpleNamespace(pw_uid=STRANGER, pw_dir=str(tree)),
    ]
    monkeypatch.setattr("pwd.getpwall", lambda: entries)
    remedies = [why["remedy"] for name in ("a/b", "a", "links") if (why := find_trouble(tree / name, "rwx"))]
    assert remedies == [
        f"run: sudo install -d -o 10001 {tree}/a/b/servekit, and use that folder",
        f"run: sudo install -d -o 10001 {tree}/a/servekit, and use that folder",
        f"run: sudo chown -R 10001 {tree}/links",
    ]


def test_own_files_need_no_sudo(tree: Path) -> None:
    """The owner can change the mode without sudo; root ignores it."""
    (tree / "a/b/file").chmod(0)
    why = find_trouble(tree / "a/b/file")
    if os.geteuid() == 0:
        assert why is None
    else:
        assert why is not None
        assert why["remedy"] == f"run: chmod u+r {tree}/a/b/file"


def test_nothing_is_wrong(tree: Path) -> None:
    """A usable file, a missing one and a folder that can be created are no trouble."""
    assert find_trouble(tree / "links/link") is None
    assert find_trouble(tree / "missing") is None
    assert find_trouble(tree / "new/deep", "rwx") is None


def test_denied_by_something_else(tree: Path) -> None:
    """If owner and mode allow it, the remedy is not a chmod that changes nothing."""
    why = explain(PermissionError(errno.EACCES, "x"), tree / "a/b/file")
    assert why["message"].endswith(f" on {tree}/a/b/file")
    assert "ACL" in why["remedy"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("a/b/file/x", "{}/a/b/file is not a folder; correct the path"),
        ("loop", "its symbolic links lead in a circle; correct the links"),
        ("n" * 300, "the name is longer than the file system allows; choose a shorter one"),
        ("a", "is a folder, not a file; name a file"),
        ("missing", "no such file or directory"),
    ],
)
def test_other_kinds_of_trouble(tree: Path, path: str, told: str) -> None:
    """A path through a file, a circle of links, a name too long: each has its own words."""
    (tree / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r".") as caught:
        (tree / path).open()
    assert str(finding_of(caught.value)) == f"{tree / path}: error: {told.format(tree)}"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE])
def test_trouble_of_the_file_system(tree: Path, code: int) -> None:
    """A full, read-only or broken file system is named as such, and never as a question of permissions."""
    why = explain(OSError(code, os.strerror(code)), tree / "a")
    assert "permission" not in why["message"] + why["remedy"]
    assert why["remedy"]


def test_error_without_a_path_gets_one(tree: Path) -> None:
    """A write to a full disk names no file, so the caller's does."""
    with pytest.raises(OSError, match="No space") as caught, about(tree / "f"):
        Path("/dev/full").write_text("x")
    assert finding_of(caught.value).file == str(tree / "f")
    assert str(finding_of(OSError(errno.EPIPE, "Broken pipe"))) == "error: Broken pipe"


def test_folder_that_cannot_be_made(tree: Path) -> None:
    """A folder below a file is a mistake of the user's, with another folder as a way out."""
    make_folder(tree / "new/deep")
    with pytest.raises(ConfigurationError, match="is not a folder; correct the path, or choose another folder"):
        make_folder(tree / "a/b/file/deep")
    with pytest.raises(ConfigurationError, match="a/b/file is not a folder"):
        make_folder(tree / "a/b/file")
