"""Files that are not a profile at all, and valid ones that look unusual."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from servekit.profile import load_profile

Write = Callable[[str], Path]
Refused = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", ": error: is empty; start from the vllm_config.yaml that comes with servekit"),
        (b" \n\n", ": error: is empty; start from the vllm_config.yaml that comes with servekit"),
        (b"# no\n", ": error: contains only comments; start from the vllm_config.yaml that comes with servekit"),
        (b"- seed\n", ":1: error: is not a mapping; write `key: value` lines"),
        (b"\nseed\n", ":2: error: is not a mapping; write `key: value` lines"),
        (b"*a\n", ":1: error: is not a mapping; write `key: value` lines"),
        (b"seed: 1\ndtype: \xff\n", ":2: error: is not UTF-8 (got byte 0xff); save the file as UTF-8 text"),
        ("seed: 1\n".encode("utf-16"), ":1: error: contains a NUL byte; save the file as UTF-8 text"),
    ],
)
def test_not_a_mapping(refused: Refused, write: Write, contents: bytes, message: str) -> None:
    """A file that is not a text mapping is rejected as a whole."""
    path = write("")
    path.write_bytes(contents)
    assert refused(path) == [f"profile.yaml{message}"]


def test_byte_order_mark_and_document_start_are_taken(write: Write, smallest: str) -> None:
    """A byte order mark and document markers are ignored."""
    assert load_profile(write("\ufeff---\n" + smallest + "...\n")).arguments["max-num-seqs"] == 1024


def test_missing_file(refused: Refused, write: Write) -> None:
    """A missing file is reported."""
    path = write("").with_name("absent.yaml")
    assert refused(path) == ["absent.yaml: error: does not exist; name the profile with --config FILE"]


def test_directory_and_device(refused: Refused, write: Write) -> None:
    """A path that is not a regular file is rejected without opening it: a pipe would block."""
    for name in ("folder.yaml", "folder"):
        folder = write("").with_name(name)
        folder.mkdir()
        assert refused(folder) == [f"{name}: error: is a directory; name the file in it"]
    os.mkfifo("pipe.yaml")
    assert refused(Path("pipe.yaml")) == ["pipe.yaml: error: is not a regular file; give the path of a YAML file"]


def test_wrong_ending(refused: Refused, write: Write, smallest: str) -> None:
    """A file name that vLLM would reject is reported together with the mistakes inside."""
    path = write(smallest + "seed: x\n").rename("profile.json")
    assert refused(path) == [
        'profile.json:8: error: seed: must be a whole number (got "x")',
        (
            "profile.json: error: does not end in .yaml or .yml (got .json); "
            "rename it to profile.yaml: vLLM takes no other ending"
        ),
    ]


def test_unreadable(refused: Refused, write: Write, smallest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the system cannot read has the reason, and no advice about its permissions."""
    path = write(smallest)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "anything")

    monkeypatch.setattr(Path, "open", refuse)
    assert refused(path) == [
        "profile.yaml: error: the disk or the network file system reports an error; look at the kernel's log (dmesg)"
    ]
    assert refused(Path("a\0b.yaml"))[0].endswith("embedded null byte; check the path")


def test_large_file_is_refused_unread(refused: Refused, write: Write) -> None:
    """A terabyte, more than any memory, is rejected by its size alone."""
    path = write("seed: 1\n")
    os.truncate(path, 1 << 40)
    assert refused(path) == [
        (
            "profile.yaml: error: is too large for a profile (got 1099511627776 bytes); "
            "a profile has at most 1048576; is this the right file?"
        )
    ]


def test_long_comments_are_taken(write: Write, smallest: str) -> None:
    """Comments do not count against the size of a profile, however long; everything else does."""
    comment = "# " + "why " * 20_000 + "\n"
    assert load_profile(write(comment * 3 + smallest)).arguments["max-num-seqs"] == 1024


def test_long_contents_are_refused(refused: Refused, write: Write, smallest: str) -> None:
    """A file within the size limit, but with more contents than a profile has, is refused before it is parsed."""
    assert refused(write(smallest + "seed: 1\n" * 10_000)) == [
        (
            "profile.yaml: error: is too large for a profile (got 70124 characters beside comments); "
            "a profile has at most 65536; is this the right file?"
        )
    ]


def test_windows_files_are_taken(write: Write, smallest: str) -> None:
    """A byte order mark and Windows' line ends are taken."""
    assert load_profile(write("\ufeff" + smallest.replace("\n", "\r\n"))).arguments["max-num-seqs"] == 1024
