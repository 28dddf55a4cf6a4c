"""The text of a YAML file, or the reason why it cannot be read."""

import os
import stat
from pathlib import Path

import yaml

from servekit.profile.mistakes import WHOLE_FILE, Mistakes

SUFFIXES = (".yaml", ".yml")
LARGEST_BYTES = 64 * 1024
TEMPLATE = "start from the vllm_config.yaml that comes with servekit"


def read_text(path: Path, mistakes: Mistakes) -> str:
    """Return the text of the YAML file `path`, of at most `LARGEST_BYTES`.

    A wrong suffix is a mistake, and the file is read all the same. Raises UnreadableError for every other mistake.
    """
    if path.suffix not in SUFFIXES:
        mistakes.add(
            WHOLE_FILE,
            "does not end in .yaml or .yml",
            got=path.suffix,
            remedy=f"rename it to {path.stem or 'profile'}.yaml: vLLM takes no other ending",
        )
    contents = _contents(path, mistakes)
    if not contents.strip():
        raise mistakes.unreadable(WHOLE_FILE, "is empty", remedy=TEMPLATE)
    if b"\0" in contents:
        line = contents[: contents.index(b"\0")].count(b"\n") + 1
        raise mistakes.unreadable(line, "contains a NUL byte", remedy="save the file as UTF-8 text")
    try:
        text = contents.decode()
    except UnicodeDecodeError as error:
        line, got = contents[: error.start].count(b"\n") + 1, f"byte 0x{contents[error.start]:02x}"
        raise mistakes.unreadable(line, "is not UTF-8", got=got, remedy="save the file as UTF-8 text") from error
    if refused := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line, got = text[: refused.start()].count("\n") + 1, f"U+{ord(refused[0]):04X}"
        raise mistakes.unreadable(line, "contains a character that YAML does not allow", got=got, remedy="take it out")
    return text


def _contents(path: Path, mistakes: Mistakes) -> bytes:
    try:
        status = path.stat()
        at_most = f"a profile has at most {LARGEST_BYTES} bytes; is this the right file?"
        checks = (
            (stat.S_ISDIR(status.st_mode), "is a directory", "", "name the file in it"),
            (not stat.S_ISREG(status.st_mode), "is not a regular file", "", "give the path of a YAML file"),
            (status.st_size > LARGEST_BYTES, "is too large for a profile", f"{status.st_size} bytes", at_most),
        )
        for wrong, message, got, remedy in checks:
            if wrong:
                raise mistakes.unreadable(WHOLE_FILE, message, got=got, remedy=remedy)
        with path.open("rb") as file:
            return file.read(LARGEST_BYTES)
    except FileNotFoundError as error:
        raise mistakes.unreadable(WHOLE_FILE, "does not exist", remedy="name the profile with --config FILE") from error
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise mistakes.unreadable(
            WHOLE_FILE, f"cannot be read: {reason}", remedy="check the path and its permissions"
        ) from error
