"""Download a model with the hub's own client, then become the engine: one program, run by the engine's Python.

    PYTHON -I hub_program.py list MODEL REVISION
    PYTHON -I hub_program.py fetch MODEL REVISION -- COMMAND...

`list` asks the hub once, `fetch` downloads what the cache lacks, compares the weights with the hub's hashes, and
replaces itself by COMMAND, offline and pinned to the commit that it downloaded (`--revision`), so that the engine
serves the files that were checked. Both report on standard output, each line MARK and a JSON object:

    {"bytes", "total"}                      in the cache, and in all; `fetch` repeats it every second
    {"bytes", "total", "verified"}          while the hashes are compared
    {"retry", "message"}                    an attempt has failed, and another follows
    {"commit"}                              the end of `list`, and of a download
    {"problem", "message", "remedy"}        the end with exit 1; PROBLEMS lists the kinds

The engine's client does it, not one of servekit's: it knows HF_ENDPOINT, proxies, tokens, redirects and partial files,
and it fills the cache that the engine reads. For huggingface_hub 1.14.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

MARK = "servekit-hub "
"""Begins each line of this program: the client's own warnings may stand between them."""
PROBLEMS = {
    "absent": (
        "the hub has no such model, or it is private",
        "check the id; for a private model set HF_TOKEN to a token of an account that may read it",
    ),
    "gated": (
        "the model is gated",
        "accept its terms on its page of the hub, and set HF_TOKEN to a token of that account",
    ),
    "token": ("the hub rejects the token", "set HF_TOKEN to a valid token, or to none for a public model"),
    "denied": (
        "access is denied",
        "set HF_TOKEN to a token of an account that may read the model, or see whether a proxy blocks the hub's hosts",
    ),
    "revision": (
        "the model has no such revision",
        "set SERVEKIT_REVISION or --revision to a branch, a tag or a commit of the model",
    ),
    "busy": ("the hub limits the rate of requests", "wait some minutes; with HF_TOKEN the limit is higher"),
    "server": ("the hub fails", "try again later, or set HF_ENDPOINT to a mirror"),
    "proxy": (
        "the proxy refuses the connection",
        "correct HTTPS_PROXY, with user and password if the proxy wants them, or name the hub in NO_PROXY",
    ),
    "network": ("the hub cannot be reached", "check the network, DNS, HF_ENDPOINT, HTTPS_PROXY and NO_PROXY"),
    "disk": ("the hub's cache cannot be written", "give this user a folder with enough space: HF_HUB_CACHE or HF_HOME"),
    "answer": ("the answer is not a hub's", "check HF_ENDPOINT, and whether a proxy answers in the hub's place"),
    "damaged": (
        "a downloaded file does not have the hub's hash; it was deleted",
        "start again to download it anew; if that repeats, a proxy or mirror alters it, or this host's disk or memory",
    ),
    "client": ("the engine's Python cannot import huggingface_hub", "install the engine again"),
}
"""What is wrong, and what the user must do."""
RETRIED = frozenset({"busy", "server", "network"})
"""What may pass by itself."""
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.tflite", "*.ot", "original/*")
"""Files of a repository that vLLM does not read when there are safetensors."""
LAST = "config.json"
"""Downloaded when the hashes are right: a snapshot without it is not whole."""
ATTEMPTS = 5
"""Attempts in a row without a new byte before a download fails."""
FILES_AT_ONCE = 4
PROGRESS_S = 1.0
ANSWER_S = 10.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
PIECE_BYTES = 8 << 20
WRITE_BYTES = 64 << 10
"""What a broken link loses at most. The client's own 10 MB may never arrive in one piece over a slow one."""


class File(NamedTuple):
    """A file of a model; `sha256` is None for a small one, which git holds itself."""

    path: str
    size: int
    sha256: str | None


class HubProblemError(Exception):
    """What keeps a model from being downloaded: a kind of PROBLEMS, and the client's words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


def main(argv: list[str]) -> NoReturn:
    """Run one of the two commands."""
    command, model, revision, *rest = argv
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # Plain HTTP continues a partial file after a restart; Xet begins it again.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    if not os.environ.get("HF_ENDPOINT"):  # the client would take an empty one for the hub's address
        os.environ.pop("HF_ENDPOINT", None)
    try:
        if command == "list":
            download = look(model, revision)
            download.report()
        else:
            download = patiently(lambda: look(model, revision))
            download.fetch()
    except HubProblemError as problem:
        what, remedy = PROBLEMS[problem.kind]
        report(problem=problem.kind, message=f"{what} ({problem})", remedy=remedy)
        sys.exit(1)
    report(commit=download.commit)
    if engine := rest[1:]:
        offline = os.environ.get("HF_HUB_OFFLINE") or "1"
        os.execvpe(  # noqa: S606
            engine[0], [*engine, "--revision", download.commit], os.environ | {"HF_HUB_OFFLINE": offline}
        )
    sys.exit(0)


def look(model: str, revision: str) -> "Download":
    """Ask the hub for the commit of `revision`, the files that vLLM reads, and whether they may be read.

    Raises HubProblemError.
    """
    with naming_problems():
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.constants import HF_HUB_CACHE

        info = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=ANSWER_S)
        files: list[File] = []
        for each in info.siblings:
            if any(fnmatch(each.rfilename, pattern) for pattern in OTHER_FORMATS):
                continue
            file = File(each.rfilename, each.size or 0, each.lfs and each.lfs.sha256)
            if not files or each.size is None:  # anybody may list a gated model; a mirror may list no sizes
                found = get_hf_file_metadata(hf_hub_url(model, file.path, revision=info.sha), timeout=ANSWER_S)
                sha256 = found.etag if re.fullmatch(r"[0-9a-f]{64}", found.etag or "") else None
                file = File(file.path, found.size or 0, sha256)
            files.append(file)
    return Download(model, revision, info.sha, files, Path(HF_HUB_CACHE))


class Download:
    """The files of one commit, in the hub and in the cache."""

    def __init__(self, model: str, revision: str, commit: str, files: list[File], cache: Path) -> None:
        self.model, self.revision, self.commit, self.files = model, revision, commit, files
        self.repository = cache / f"models--{model.replace('/', '--')}"
        self.snapshot = self.repository / "snapshots" / commit
        self.total = sum(file.size for file in files)
        self.verified = 0

    def fetch(self) -> None:
        """Download what the cache lacks, again after errors of the network for as long as bytes arrive, and verify it.

        Raises HubProblemError.
        """
        with naming_problems():
            if self.revision != self.commit:
                reference = self.repository / "refs" / self.revision
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(self.commit)
        order = sorted(self.files, key=lambda file: file.size)
        with self.reporting():
            last = [file for file in order if file.path == LAST]
            patiently(lambda: self.fetch_once([file for file in order if file not in last]), self.present)
            self.verify([file for file in order if file.sha256])
            patiently(lambda: self.fetch_once(last), self.present)

    def fetch_once(self, files: list[File]) -> None:
        """Download each file that is missing; a partial one is continued."""
        from huggingface_hub import constants, hf_hub_download

        constants.DOWNLOAD_CHUNK_SIZE = WRITE_BYTES

        def download(file: File) -> None:
            with naming_problems():
                hf_hub_download(self.model, file.path, revision=self.commit)

        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for done in [pool.submit(download, file) for file in files]:
                done.result()

    def verify(self, files: list[File]) -> None:
        """Compare files with their hashes; delete a damaged one."""

        def check(file: File) -> str:
            path = self.snapshot / file.path
            with naming_problems():
                if digest(path, hashlib.sha256(), self.count) == file.sha256:
                    return ""
                path.resolve().unlink()
                path.unlink(missing_ok=True)
            return file.path

        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            if damaged := ", ".join(filter(None, pool.map(check, files))):
                raise HubProblemError("damaged", damaged)

    def count(self, size: int) -> None:
        """Count bytes whose hash was computed."""
        self.verified += size

    def present(self) -> int:
        """Return the bytes that the cache holds, whole files and partial ones."""
        return sum(self.size_of(file) for file in self.files)

    def size_of(self, file: File) -> int:
        """Return how much of a file the cache holds."""
        blobs = self.repository / "blobs"
        names = (blobs / file.sha256, blobs / f"{file.sha256}.incomplete") if file.sha256 else ()
        for path in (self.snapshot / file.path, *names):
            with contextlib.suppress(OSError):
                return int(min(file.size, path.stat().st_size))
        return 0

    def report(self) -> None:
        """Report how far it is."""
        report(bytes=self.present(), total=self.total, **({"verified": self.verified} if self.verified else {}))

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Report every second, and once more at the end."""
        over = threading.Event()

        def repeat() -> None:
            while not over.wait(PROGRESS_S):
                self.report()

        thread = threading.Thread(target=repeat, daemon=True)
        self.report()
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.report()


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
            report(retry=problem.kind, message=f"{PROBLEMS[problem.kind][0]} ({problem})")
            time.sleep(min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))


def digest(path: Path, algorithm: Any, count: Callable[[int], None] = lambda _: None) -> str:
    """Return the hash of a file in hexadecimal digits; `count` gets the size of each piece read."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            algorithm.update(piece)
            count(len(piece))
    return str(algorithm.hexdigest())


@contextlib.contextmanager
def naming_problems() -> Iterator[None]:
    """Turn whatever is raised for a foreseeable reason into a HubProblemError."""
    try:
        yield
    except ImportError as error:
        raise HubProblemError("client", first_line(error)) from error
    except Exception as error:
        cause = cause_of(error)
        if not (kind := kind_of(cause)):
            raise
        raise HubProblemError(kind, first_line(cause)) from error


def cause_of(error: BaseException) -> BaseException:
    """Return what the client hides behind "not in the cache"."""
    from huggingface_hub import errors

    return error.__cause__ or error if isinstance(error, errors.LocalEntryNotFoundError) else error


def kind_of(error: BaseException) -> str:
    """Return the kind of problem that an exception of the client is; empty for one that nobody foresaw."""
    import httpx
    from huggingface_hub import errors

    if isinstance(error, httpx.ProxyError):  # httpx writes the proxy's status; only 407 is for the user to mend
        return "proxy" if "407" in str(error) else "network"
    if isinstance(error, OSError) and error.errno is not None:
        return "disk"
    kinds: list[tuple[type[BaseException], str]] = [
        (errors.GatedRepoError, "gated"),
        (errors.RepositoryNotFoundError, "absent"),
        (errors.RevisionNotFoundError, "revision"),
        (errors.FileMetadataError, "answer"),
    ]
    for wanted, kind in kinds:
        if isinstance(error, wanted):
            return kind
    if isinstance(error, errors.HfHubHTTPError):
        return kind_of_status(error.response.status_code)
    if isinstance(error, httpx.HTTPError | OSError):
        return "network"
    return "answer" if isinstance(error, ValueError) else ""


def kind_of_status(status: int) -> str:
    """Return the kind of problem that an HTTP status is."""
    known = {401: "token", 403: "denied", 407: "proxy", 429: "busy"}
    return known.get(status) or ("server" if status >= 500 else "answer")  # noqa: PLR2004 - the servers' own errors


def first_line(error: BaseException) -> str:
    """Return the client's words without its advice; addresses without their query, which may hold a signature."""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return re.sub(r"\?[^\s'\"]*", "", f"{type(error).__name__}: {words}" if words else type(error).__name__)


def report(**values: Any) -> None:
    """Print one line."""
    sys.stdout.write(f"{MARK}{json.dumps(values)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
