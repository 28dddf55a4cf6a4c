"""An endpoint that `servekit bench` starts, measures and stops: one configuration after the other on one GPU."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from servekit.errors import ConfigurationError, Finding
from servekit.measure.recording.sampling import find_status

PROGRAM: Final = (sys.executable, "-m", "servekit.cli.main")
_POLL_S: Final = 0.5


def read_configurations(
    named: Sequence[tuple[str, str]], folder: Path, environ: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return the flags of `servekit serve` by name, once `servekit check` has nothing against any of them.

    Each is checked before the first one starts, because the second one starts hours later. Raises ConfigurationError.
    """
    mistakes, found = [], {}
    for name, text in named:
        if name in found:
            mistakes.append(Finding("is given twice", "--serve", got=name, remedy="give each its own name"))
        if (folder / name).exists():
            mistakes.append(Finding("exists already", file=str(folder / name), remedy="choose another --dir"))
        try:
            found[name] = shlex.split(text)
        except ValueError as error:
            mistakes.append(Finding(f"{name}: {error}", "--serve", got=text, remedy="quote the flags as for a shell"))
    for name, flags in found.items() if not mistakes else ():
        if code := subprocess.run([*PROGRAM, "check", *flags], env=environ, stdout=2, check=False).returncode:
            message = f"{name}: servekit check ended with exit code {code}"
            mistakes.append(Finding(message, "--serve", remedy="mend what it says above"))
    if mistakes:
        raise ConfigurationError(mistakes)
    return found


@contextmanager
def serving(flags: Sequence[str], environ: Mapping[str, str], url: str, log: Path) -> Iterator[None]:
    """Run `servekit serve` from its readiness to the end of the block, and wait until it has drained.

    `url` is that of its own server. Raises ConfigurationError where another servekit answers there, or where this one
    ends instead of becoming ready.
    """
    if find_status(url) is not None:
        raise ConfigurationError([Finding("another servekit answers here", url, remedy="stop it first")])
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Its own session: Ctrl-C ends the load, and the endpoint only after it.
        process = subprocess.Popen(
            [*PROGRAM, "serve", *flags],
            env=environ,
            stdout=stack.enter_context(log.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _exit))
        while not (find_status(url) or {}).get("ready"):
            if (code := process.poll()) is not None:
                message = f"servekit serve ended with exit code {code}"
                raise ConfigurationError([Finding(message, file=str(log), remedy="read the end of this log")])
            time.sleep(_POLL_S)
        yield


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)
