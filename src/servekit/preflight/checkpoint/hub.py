"""Locates a model's files: in a folder, in the local cache of the Hugging Face hub, or on the hub.

The cache's layout is that of huggingface_hub ("Manage huggingface_hub cache-system"): `models--OWNER--NAME/` with
`refs/REVISION`, which holds a commit, and `snapshots/COMMIT/` with the files.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from servekit.file_trouble import find_trouble
from servekit.preflight.findings import Finding, error, note

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})
DEFAULT_ENDPOINT: Final = "https://huggingface.co"
HUB_TIMEOUT_S: Final = 1.5


def hub_cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the hub cache that huggingface_hub uses with this environment."""
    if explicit := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(explicit)
    if home := environ.get("HF_HOME"):
        return _expanded(home) / "hub"
    cache = environ.get("XDG_CACHE_HOME") or str(_expanded(environ.get("HOME", "~")) / ".cache")
    return _expanded(cache) / "huggingface" / "hub"


def _expanded(path: str) -> Path:
    """Expand `~` as huggingface_hub does: where there is no such home it stays, and Path.expanduser would raise."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the environment forbids requests to the hub."""
    return any(environ.get(key, "").upper() in _TRUE for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_status(model: str, revision: str, endpoint: str = DEFAULT_ENDPOINT) -> str:
    """Request config.json from the hub once; return the reason for a failure, empty on success."""
    import urllib3  # only for a request to the hub: its imports take time

    url = f"{endpoint.rstrip('/')}/{model}/resolve/{revision}/config.json"
    try:
        with urllib3.PoolManager(num_pools=1) as pool:
            answer = pool.request(
                "HEAD", url, timeout=urllib3.Timeout(total=HUB_TIMEOUT_S), retries=False, redirect=False
            )
    except urllib3.exceptions.HTTPError as problem:
        return f"{endpoint} does not answer within {HUB_TIMEOUT_S} s ({type(problem).__name__})"
    if answer.status in {401, 403}:
        return f"{endpoint} denies access to {model} (HTTP {answer.status}): it is private, gated or does not exist"
    if answer.status >= 400:  # noqa: PLR2004 - HTTP's range of errors
        return f"{endpoint} has no {model} with a config.json (HTTP {answer.status})"
    return ""


def locate_model(
    model: str,
    *,
    hub_cache: Path,
    offline: bool,
    revision: str = "main",
    ask_hub: Callable[[str, str], str] = hub_status,
) -> tuple[Path | None, str, tuple[Finding, ...]]:
    """Return the folder of the model's files and, of a cached hub model, the commit.

    Without such a folder on this machine: None, and the finding with the reason.
    """
    folder = _expanded(model)
    repository = hub_cache / f"models--{model.replace('/', '--')}"
    places = (folder, repository, repository / "refs" / revision, repository / "snapshots")
    if why := next(filter(None, map(find_trouble, places)), None):
        return None, "", (error("checkpoint-unreadable", subject=model, **why),)
    if folder.is_dir():
        return folder, "", ()
    snapshot = _cached(model, hub_cache, revision) if _HUB_ID.fullmatch(model) else None
    if snapshot:
        return snapshot, snapshot.name, ()
    return None, "", (_absent(model, hub_cache, "" if offline else revision, ask_hub),)


def _absent(model: str, hub_cache: Path, revision: str, ask_hub: Callable[[str, str], str]) -> Finding:
    """Report why there is no such model; an empty revision means that offline mode forbids a request to the hub."""
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        return error("model-missing", "no such folder", subject=model, remedy="give the folder that holds config.json")
    if not _HUB_ID.fullmatch(model):
        return error(
            "model-name",
            "is neither a folder nor a hub id",
            subject="--model",
            got=repr(model),
            remedy="give a folder, or an id such as owner/name",
        )
    if not revision:
        return error(
            "hub-offline",
            f"not in the cache {hub_cache}, and offline mode forbids a download",
            subject=model,
            remedy="download it on a machine with a network and mount that cache, or give a folder",
        )
    if reason := ask_hub(model, revision):
        return error(
            "hub-unreachable",
            f"not in the cache {hub_cache}, and {reason}",
            subject=model,
            remedy="check the id, the network and HF_TOKEN, or give a folder",
        )
    return note(
        "hub-download",
        f"not in the cache {hub_cache}: the engine downloads it during the start; preflight did not check its contents",
        subject=model,
        remedy="download it first: preflight then checks it, and the start meets its deadline",
    )


def _cached(model: str, hub_cache: Path, revision: str) -> Path | None:
    repository = hub_cache / f"models--{model.replace('/', '--')}"
    reference = repository / "refs" / revision
    try:
        commit = revision if _COMMIT.fullmatch(revision) else reference.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None
