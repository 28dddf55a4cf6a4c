"""The text of a file, or the reason why it has none to offer."""

import os
import stat
from pathlib import Path

from servekit.profile.mistakes import WHOLE_FILE, Mistakes

SUFFIXES = (".yaml", ".yml")
LARGEST_BYTES = 64 * 1024
TEMPLATE = "start from the vllm_config.yaml that comes with servekit"


class UnreadableError(Exception):
    """The file cannot be read on from here; the mistake is noted already."""


def read_text(path: Path, mistakes: Mistakes) -> str:
    """Read the text of the YAML file `path`, of at most `LARGEST_BYTES`.

    Raises UnreadableError, after adding the reason to `mistakes`. A wrong ending is noted and read on.
    """
    return _decoded(_bytes(path, mistakes), mistakes)


def _bytes(path: Path, mistakes: Mistakes) -> bytes:
    if path.suffix not in SUFFIXES:
        remedy = f"rename it to {path.stem or 'profile'}.yaml: vLLM takes no other ending"
        mistakes.add(WHOLE_FILE, "does not end in .yaml or .yml", got=path.suffix, remedy=remedy)
    problem = remedy = got = ""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            problem, remedy = "is a directory", "name the file in it"
        elif not stat.S_ISREG(status.st_mode):
            problem, remedy = "is not a regular file", "give the path of a YAML file"
        elif status.st_size > LARGEST_BYTES:
            problem, got = "is too large for a profile", f"{status.st_size} bytes"
            remedy = f"a profile has at most {LARGEST_BYTES} bytes; is this the right file?"
        else:
            with path.open("rb") as file:
                contents = file.read(LARGEST_BYTES + 1)
            if contents.strip():
                return contents
            problem, remedy = "is empty", TEMPLATE
    except FileNotFoundError:
        problem, remedy = "does not exist", "name the profile with --config FILE"
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        problem, remedy = f"cannot be read: {reason}", "check the path and its permissions"
    mistakes.add(WHOLE_FILE, problem, got=got, remedy=remedy)
    raise UnreadableError


def _decoded(contents: bytes, mistakes: Mistakes) -> str:
    if b"\0" in contents:
        line = contents[: contents.index(b"\0")].count(b"\n") + 1
        mistakes.add(line, "holds a NUL byte", remedy="save the file as UTF-8 text")
        raise UnreadableError
    try:
        return contents.decode()
    except UnicodeDecodeError as error:
        line = contents[: error.start].count(b"\n") + 1
        got = f"byte 0x{contents[error.start]:02x}"
        mistakes.add(line, "is not UTF-8", got=got, remedy="save the file as UTF-8 text")
        raise UnreadableError from error
