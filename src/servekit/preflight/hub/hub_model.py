"""A model of the hub: what of it the local cache holds, which the file system alone decides.

The cache's layout is that of huggingface_hub ("Manage huggingface_hub cache-system"): `models--OWNER--NAME/` with
`refs/REVISION`, which holds a commit, `snapshots/COMMIT/` with links to the files, and `blobs/` with the files, partial
ones as `*.incomplete`.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from servekit.preflight.findings import Finding, error
from servekit.preflight.hub import hub_program

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})
_INDEX: Final = "model.safetensors.index.json"
_NUMBERED: Final = re.compile(r"(.*-)(\d+)(-of-)(\d+)\.safetensors")


@dataclass(frozen=True)
class HubModel:
    """A model of the hub at a revision, and its part in the cache."""

    name: str
    revision: str
    repository: Path
    """The model's folder in the cache."""
    commit: str
    """The commit that the cache has for the revision; empty: none."""
    whole: bool
    """Whether the cache has every file of that commit that the engine needs."""
    offline: bool
    """Whether the environment forbids requests to the hub."""
    python: str
    """The Python of the engine; empty: unknown."""

    @property
    def snapshot(self) -> Path:
        """The folder with the files of the commit; it need not exist."""
        return self.repository / "snapshots" / (self.commit or "none")

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders and the file that this user must be able to read."""
        snapshots = self.repository / "snapshots"
        return self.repository, self.repository / "refs" / self.revision, snapshots, self.snapshot

    @property
    def cached_bytes(self) -> int:
        """Bytes of the model in the cache, of every revision, partial files too."""
        return sum(path.stat().st_size for path in (self.repository / "blobs").glob("*"))

    @property
    def unasked(self) -> Self:
        """Return the same model, about which preflight must not ask the hub."""
        return replace(self, python="")

    def program(self, command: str) -> tuple[str, ...]:
        """Return the command line of hub_program, which the engine's Python runs."""
        return (self.python, "-I", hub_program.__file__, command, self.name, self.revision)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before the engine's command line: the download, if there is something to download."""
        return () if self.whole or self.offline or not self.python else (*self.program("fetch"), "--")

    @property
    def pinned(self) -> tuple[str, ...]:
        """The engine's arguments for the revision; the download adds the commit that it finds."""
        revision = self.commit if self.whole else self.revision
        return () if self.prefix else ("--revision", revision)


def find_hub_model(model: str, revision: str, environ: Mapping[str, str], engine: str) -> HubModel | None:
    """Look for a model in the cache that huggingface_hub uses with this environment; None for what is no hub id."""
    if _may_be_folder(expanded(model)) or not _HUB_ID.fullmatch(model):
        return None
    repository = hub_cache_folder(environ) / f"models--{model.replace('/', '--')}"
    revision = revision or "main"
    commit = _commit_of(repository, revision)
    return HubModel(
        name=model,
        revision=revision,
        repository=repository,
        commit=commit,
        whole=bool(commit) and is_whole(repository / "snapshots" / commit),
        offline=is_offline(environ),
        python=python_of(engine, environ),
    )


def _may_be_folder(path: Path) -> bool:
    """Whether there is such a folder, or a folder above it in which this user may not look; preflight says so."""
    try:
        return path.is_dir()
    except OSError as problem:
        return isinstance(problem, PermissionError)


def not_found(model: str) -> Finding:
    """Report a model that is neither a folder nor a hub id."""
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        return error("model-missing", "no such folder", subject=model, remedy="give the folder that holds config.json")
    return error(
        "model-name",
        "is neither a folder nor a hub id",
        subject="--model",
        got=repr(model),
        remedy="give a folder, or an id such as owner/name",
    )


def amount(size: float) -> str:
    """Return a number of bytes as text in decimal units, as networks and the hub count."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}" if unit == "GB" else f"{size / factor:,.1f} {unit}"
    return f"{size:g} bytes"


def hub_cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the hub cache that huggingface_hub uses with this environment."""
    if explicit := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return expanded(explicit)
    if home := environ.get("HF_HOME"):
        return expanded(home) / "hub"
    cache = environ.get("XDG_CACHE_HOME") or str(expanded(environ.get("HOME", "~")) / ".cache")
    return expanded(cache) / "huggingface" / "hub"


def expanded(path: str) -> Path:
    """Expand `~` as huggingface_hub does: where there is no such home it stays, and Path.expanduser would raise."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the environment forbids requests to the hub."""
    return any(environ.get(key, "").upper() in _TRUE for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def is_whole(snapshot: Path) -> bool:
    """Whether a snapshot has the files without which no engine starts: configuration, tokenizer and all weights.

    A link to a file that was deleted counts as absent. What else a download brings is small and comes before these.
    """
    present = {path.name for path in snapshot.glob("*") if os.path.exists(path)}  # noqa: PTH110 - as in _commit_of
    weights = {name for name in present if name.endswith(".safetensors")}
    tokenizer = present & {"tokenizer.json", "tokenizer.model"}
    return "config.json" in present and bool(weights and tokenizer) and _wanted(snapshot, weights) <= weights


def _wanted(snapshot: Path, present: set[str]) -> set[str]:
    """Return the names of the weights: those of the index, or of all parts where a name counts them."""
    try:
        return set(json.loads((snapshot / _INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        numbered = [match for match in map(_NUMBERED.fullmatch, present) if match]
        return {
            f"{match[1]}{number:0{len(match[2])}}{match[3]}{match[4]}.safetensors"
            for match in numbered
            for number in range(1, int(match[4]) + 1)
        }


def _commit_of(repository: Path, revision: str) -> str:
    """Return the commit that the cache knows for a revision, if it has files of it; else empty."""
    try:
        known = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        known = ""
    commit = known or (revision if _COMMIT.fullmatch(revision) else "")
    # Path.is_dir raises where this user may not look; preflight says so.
    return commit if os.path.isdir(repository / "snapshots" / commit) else ""  # noqa: PTH112


def python_of(engine: str, environ: Mapping[str, str]) -> str:
    """Return the Python that runs a program, from its first lines; empty if they name none.

    An installer writes `#!/bin/sh` and `'''exec' PYTHON "$0" "$@"` where the path has spaces or is too long for `#!`.
    """
    program = shutil.which(engine, path=environ.get("PATH")) if engine else None
    if program is None:
        return ""
    try:
        with Path(program).open(encoding="utf-8", errors="replace") as file:
            first, second = file.readline(4096), file.readline(4096)
        words = shlex.split(first[2:]) if first.startswith("#!") else []
        if words == ["/bin/sh"] and second.startswith("'''exec' "):
            words = shlex.split(second.removeprefix("'''exec' "))
    except (OSError, ValueError):
        return ""
    if words and Path(words[0]).name == "env":
        words = words[1:]
    if not words or not Path(words[0]).name.startswith("python"):
        return ""
    return shutil.which(words[0], path=environ.get("PATH")) or ""
