"""Download a model with the hub's own client, then become the engine: one program, run by the engine's Python.

    PYTHON -I hub_program.py list MODEL REVISION
    PYTHON -I hub_program.py fetch MODEL REVISION [-- COMMAND...]

Both print JSON lines on standard output. `list` prints one `{"commit", "files": [[path, bytes, sha256 or null]]}`.
`fetch` prints `{"bytes", "total"}` every second and then replaces itself by COMMAND, offline and pinned to the commit
that it downloaded (`--revision`), so that the engine serves the files that were checked. Failures end with exit 1
after `{"problem", "message"}`; PROBLEMS lists the kinds.

The engine's client does it, not one of servekit's: it knows HF_ENDPOINT, proxies, tokens, redirects, partial files
and Xet, and it fills the cache that the engine reads. For huggingface_hub 1.14.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

PROBLEMS = {
    "absent": "the hub has no such model, or it is private and the token may not read it",
    "gated": "the model is gated: accept its terms on the hub with the account of the token",
    "token": "the hub rejects the token",
    "revision": "the model has no such revision",
    "busy": "the hub limits the rate of requests",
    "server": "the hub fails",
    "proxy": "the proxy refuses the connection",
    "network": "the hub cannot be reached",
    "disk": "the cache folder cannot be written",
    "answer": "the answer is not a hub's",
}
RETRIED = frozenset({"busy", "server", "network"})
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.tflite", "*.ot", "original/*")
"""Files of a repository that vLLM does not read when there are safetensors."""
ATTEMPTS = 5
"""Attempts in a row without a new byte before a download fails."""
FILES_AT_ONCE = 4
PROGRESS_S = 1.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

File = tuple[str, int, str | None]


class HubProblemError(Exception):
    """What keeps a model from being downloaded: a kind of PROBLEMS, and the client's words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


def main(argv: list[str]) -> NoReturn:
    """Run one of the two commands."""
    command, model, revision, *rest = argv
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        commit, files = patiently(lambda: list_files(model, revision))
        if command == "list":
            report(commit=commit, files=files)
            sys.exit(0)
        fetch(model, commit, files)
    except HubProblemError as problem:
        report(problem=problem.kind, message=f"{PROBLEMS[problem.kind]} ({problem})")
        sys.exit(1)
    engine = rest[1:]
    if not engine:
        sys.exit(0)
    os.execvpe(engine[0], [*engine, "--revision", commit], os.environ | {"HF_HUB_OFFLINE": "1"})  # noqa: S606


def list_files(model: str, revision: str) -> tuple[str, list[File]]:
    """Ask the hub for the commit of `revision` and the files that vLLM reads, with sizes and hashes of weights.

    Raises HubProblemError.
    """
    from huggingface_hub import HfApi

    with naming_problems():
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
        files = [(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None) for each in info.siblings]
    return info.sha, [file for file in files if not any(fnmatch(file[0], pattern) for pattern in OTHER_FORMATS)]


def fetch(model: str, commit: str, files: list[File]) -> None:
    """Download what the cache lacks, again after errors of the network for as long as bytes arrive.

    Raises HubProblemError.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = Path(HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    total = sum(size for _, size, _ in files)

    def present() -> int:
        return min(total, bytes_present(repository))

    with reporting(lambda: report(bytes=present(), total=total)):
        patiently(lambda: fetch_once(model, commit, files), present)


def patiently(attempt: Callable[[], Any], present: Callable[[], int] = lambda: 0) -> Any:
    """Attempt again after errors of the network for as long as bytes arrive, and ATTEMPTS times without.

    Raises HubProblemError.
    """
    failures, before = 0, present()
    while True:
        try:
            return attempt()
        except HubProblemError as problem:
            now = present()
            failures = 1 if now > before else failures + 1
            before = now
            if problem.kind not in RETRIED or failures >= ATTEMPTS:
                raise
            report(retry=problem.kind, message=str(problem))
            time.sleep(min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))


def fetch_once(model: str, commit: str, files: list[File]) -> None:
    """Download every file that is missing; a partial one is continued."""
    from huggingface_hub import hf_hub_download

    def download(file: File) -> None:
        with naming_problems():
            hf_hub_download(model, file[0], revision=commit)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for done in [pool.submit(download, file) for file in sorted(files, key=lambda file: file[1])]:
            done.result()


def bytes_present(repository: Path) -> int:
    """Return the bytes of whole and of partial files (`blobs/*.incomplete`) in the cache."""
    size = 0
    for path in (repository / "blobs").glob("*"):
        with contextlib.suppress(OSError):  # renamed when it was whole
            size += path.stat().st_size
    return size


@contextlib.contextmanager
def naming_problems() -> Iterator[None]:
    """Turn whatever the client raises for a foreseeable reason into a HubProblemError."""
    import httpx
    from huggingface_hub import errors

    kinds: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, "gated"),
        (errors.RepositoryNotFoundError, "absent"),
        (errors.RevisionNotFoundError, "revision"),
        (errors.FileMetadataError, "answer"),
        (httpx.ProxyError, "proxy"),
        (httpx.HTTPError, "network"),
        (ValueError, "answer"),
    ]
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
            cause = error.__cause__  # the client hides what happened behind "not in the cache"
        kind = next((kind for wanted, kind in kinds if isinstance(cause, wanted)), "")
        if isinstance(cause, errors.HfHubHTTPError) and kind in {"", "network"}:
            kind = kind_of_status(cause.response.status_code)
        elif isinstance(cause, OSError) and not kind:
            kind = "disk" if cause.errno is not None else "network"
        if not kind:
            raise
        raise HubProblemError(kind, first_line(cause)) from error


def kind_of_status(status: int) -> str:
    """Return the kind of problem that an HTTP status is."""
    known = {401: "token", 403: "gated", 404: "absent", 407: "proxy", 429: "busy"}
    return known.get(status) or ("server" if status >= 500 else "answer")  # noqa: PLR2004 - the servers' own errors


def first_line(error: BaseException) -> str:
    """Return the client's words without its advice; the type where it has none."""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


@contextlib.contextmanager
def reporting(once: Callable[[], None]) -> Iterator[None]:
    """Report every second, and once more at the end."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(PROGRESS_S):
            once()

    thread = threading.Thread(target=repeat, daemon=True)
    once()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        once()


def report(**values: Any) -> None:
    """Print one JSON line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
