"""Key files: created private, checked, rotated; the guard reads them again when they change."""

import contextlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servekit.errors import ConfigurationError
from servekit.serve.guard.inside.servekit_guard.key_lines import KeyFileError, parse_lines
from servekit.serve.guard.inside.servekit_guard.keyring import Keyring, permission_problem
from servekit.serve.guard.keys import client_key, ensure_key_file, load_keys, own_key_file, rotate_key
from tests.conftest import write_key_file
from tests.guard.test_gate import Upstream, make_gate

FIRST = "sk-first-0123456789abcdef"
SECOND = "sk-second-0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_key_file(tmp_path, FIRST)


class Clock:
    """A clock that the test advances."""

    now_s = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def test_several_keys_comments_and_blank_lines() -> None:
    """A file has one key per line; comments, blank lines and duplicates are ignored."""
    text = f"# ours\n\n  {FIRST}   # the phone\n{SECOND}\r\n{FIRST}\n"
    assert tuple(parse_lines(text)) == (FIRST, SECOND)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "#" + FIRST])
def test_a_file_without_a_key_is_an_error(text: str) -> None:
    """No key is never taken for "no key needed"."""
    with pytest.raises(KeyFileError, match="it contains no key"):
        parse_lines(text)


def test_every_bad_line_is_reported_and_none_repeated() -> None:
    """Every bad line is reported by number; its text, which may be a key, is not repeated."""
    with pytest.raises(KeyFileError) as caught:
        parse_lines(f"{FIRST}\nshort\nwith spaces in the middle of it\nschlüssel-mit-umlaut-und-länge\n{'k' * 513}\n")
    assert list(caught.value.problems) == [2, 3, 4, 5]
    assert "short" not in str(caught.value)


@given(st.text())
def test_any_text_gives_keys_or_an_error(text: str) -> None:
    """Any file content gives a KeyFileError or usable keys."""
    keys: tuple[str, ...] = ()
    with contextlib.suppress(KeyFileError):
        keys = tuple(parse_lines(text))
        assert keys
    assert all(20 <= len(key) <= 512 and key.isascii() and " " not in key for key in keys)


def test_a_generated_key_is_long_and_new(path: Path) -> None:
    """A key has 256 random bits and a prefix that secret scanners can recognise."""
    one, other = rotate_key(path), rotate_key(path)
    assert one != other
    assert one.startswith("sk-servekit-")
    assert len(one) == 55
    assert tuple(parse_lines(one)) == (one,)


def test_a_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    """The first call creates folder and file for the owner only; the second leaves them unchanged."""
    path = own_key_file(tmp_path / "state" / "servekit")
    assert ensure_key_file(path)
    keys = load_keys(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not ensure_key_file(path)
    assert load_keys(path) == keys
    assert [file.name for file in path.parent.iterdir()] == ["api_keys"]


def test_rotation_replaces_the_key_or_adds_one(path: Path) -> None:
    """A rotated file has the new key, and the old ones after it when they are kept."""
    assert load_keys(path) == (FIRST,)
    second = rotate_key(path, keep_old=True)
    assert load_keys(path) == (second, FIRST)
    third = rotate_key(path)
    assert load_keys(path) == (third,)
    assert path.stat().st_mode & 0o777 == 0o600


def test_commands_take_a_key_that_works(path: Path) -> None:
    """`bench`, `eval` and `tune` take the first valid key without limits; expired ones are no use to them."""
    path.write_text(f"{FIRST} expires=2020-01-01\n")
    with pytest.raises(ConfigurationError, match="servekit key --new"):
        client_key(path)
    limited = f"{FIRST} expires=2020-01-01\n{SECOND}1 routes=/v1/models\n{SECOND}2 in-flight=1\n"
    path.write_text(limited)
    assert client_key(path) == f"{SECOND}2"
    path.write_text(f"{limited}{SECOND}3\n{SECOND}4\n")
    assert client_key(path) == f"{SECOND}3"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_private_mode_is_accepted(path: Path, mode: int) -> None:
    """The owner, and a group that may only read, as Kubernetes mounts a secret."""
    path.chmod(mode)
    assert permission_problem(path.stat()) is None


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602, 0o620, 0o777])
def test_an_open_mode_is_refused(path: Path, mode: int) -> None:
    """A file that others may read, or anyone else may write, is refused; the message says what to do."""
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"{mode:04o}.*0600"):
        load_keys(path)


def test_a_strangers_file_is_refused(path: Path) -> None:
    """A file that belongs to another user is refused: that user could change the keys."""
    fields = list(path.stat())
    fields[4] = os.geteuid() + 12345
    assert "belongs to user" in str(permission_problem(os.stat_result(fields)))


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    """What cannot be read is an error with the path."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigurationError, match=str(path)):
            load_keys(path)


def test_a_large_or_binary_file_is_refused(path: Path) -> None:
    """A large or binary file is not read as keys."""
    for content in (b"\xff" * 30, f"{FIRST}\n".encode() * 4000):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError):
            load_keys(path)


def test_a_key_file_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    """A state folder that is not a folder ends the start with a remedy and without a traceback."""
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigurationError, match="SERVEKIT_API_KEYS_FILE"):
        ensure_key_file(tmp_path / "state" / "api_keys")


def test_the_keyring_admits_each_key_and_no_other(path: Path) -> None:
    """All keys of the file are valid together; a part of one is not."""
    path.write_text(f"{FIRST}\n{SECOND}\n")
    ring = Keyring(path)
    assert len(ring) == 2
    assert ring.admits(FIRST.encode())
    assert ring.admits(SECOND.encode())
    for other in (b"", FIRST[:-1].encode(), FIRST.encode() + b"x", b"\xff" * 1000):
        assert not ring.admits(other)


def test_the_keyring_keeps_no_key_in_clear(path: Path) -> None:
    """Only hashes are in memory."""
    assert FIRST not in repr(vars(Keyring(path)))


def test_a_changed_file_takes_effect_within_a_second(path: Path) -> None:
    """A new key works after the check interval, and the old one stops working."""
    clock = Clock()
    ring = Keyring(path, clock)
    new = rotate_key(path)
    clock.now_s += 0.9
    assert ring.admits(FIRST.encode())
    clock.now_s += 0.2
    assert ring.admits(new.encode())
    assert not ring.admits(FIRST.encode())
    assert (ring.reloads, ring.refused_reloads, ring.problem) == (1, 0, None)


@pytest.mark.parametrize("content", ["", "# none\n", "short\n", None])
def test_a_broken_file_leaves_the_old_keys(path: Path, content: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """An empty, broken or missing new file changes nothing and is logged once; a usable one takes effect again."""
    clock = Clock()
    ring = Keyring(path, clock)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    for _ in range(3):
        clock.now_s += 2
        assert ring.admits(FIRST.encode())
    assert (ring.reloads, ring.refused_reloads) == (0, 1)
    assert ring.problem
    assert caplog.text.count("the old keys stay valid") == 1
    assert FIRST not in caplog.text
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(f"{SECOND}\n")
    clock.now_s += 2
    assert ring.admits(SECOND.encode())
    assert ring.problem is None


def test_a_broken_file_shows_without_a_client(path: Path) -> None:
    """An alert on the key file does not wait for the next request: reading the counters looks at the file too."""
    gate = make_gate(Upstream(), path)
    gate._keys = Keyring(path, clock := Clock())
    path.write_text(f"{FIRST}\n{SECOND}\n")
    clock.now_s += 2
    assert (gate.counters()["keys"], gate.counters()["key_reloads"]) == (2, 1)
    path.unlink()
    clock.now_s += 2
    assert (gate.counters()["keys"], gate.counters()["key_file_problem"]) == (2, "No such file or directory")


def test_a_file_opened_to_others_later_is_not_taken(path: Path) -> None:
    """A change of the mode alone counts as a change: nobody else may add a key."""
    clock = Clock()
    ring = Keyring(path, clock)
    path.chmod(0o666)
    path.write_text(f"{SECOND}\n")
    clock.now_s += 2
    assert not ring.admits(SECOND.encode())
    path.chmod(0o600)
    clock.now_s += 2
    assert ring.admits(SECOND.encode())


@pytest.mark.parametrize(("mode", "kept"), [(0o640, 0o640), (0o600, 0o600), (0o4400, 0o400)])
def test_a_rotated_file_keeps_its_owner(path: Path, mode: int, kept: int) -> None:
    """The container's user can still read a file that root rotates; others never gain a right."""
    rotate_key(path)
    owner = (10001, 10001) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    path.chmod(mode)
    rotate_key(path)
    now = path.stat()
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (*owner, kept)


@pytest.mark.parametrize(("mode", "content"), [(0o644, FIRST), (0o666, FIRST), (0o600, f"{FIRST} \xff")])
@pytest.mark.parametrize("keep_old", [False, True])
def test_a_rotation_loses_no_key_of_an_unusable_file(path: Path, mode: int, content: str, *, keep_old: bool) -> None:
    """A file that others may read or that is not ASCII stays as it is, and the message says what is wrong with it."""
    path.write_bytes(content.encode("latin-1"))
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 0600" if mode != 0o600 else "not ASCII"):
        rotate_key(path, keep_old=keep_old)
    assert path.read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize("content", ["", "# none yet\n"])
def test_a_rotation_fills_a_file_without_keys(path: Path, content: str) -> None:
    """Where there is no key to lose, the new file is private whatever the old one was."""
    path.write_text(content)
    path.chmod(0o644)
    assert (rotate_key(path),) == load_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_cannot_be_given_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may replace a file but not give it away rotates the key all the same."""

    def fchown(*_: object) -> None:
        raise PermissionError

    rotate_key(path)
    monkeypatch.setattr(os, "fchown", fchown)
    assert rotate_key(path) in path.read_text(encoding="utf-8")
