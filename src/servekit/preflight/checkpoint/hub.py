"""Where a model's files are: a folder, the local cache of the Hugging Face hub, or the hub itself.

The cache's layout is that of huggingface_hub ("Manage huggingface_hub cache-system"): `models--OWNER--NAME/` with
`refs/REVISION`, which holds a commit, and `snapshots/COMMIT/` with the files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servekit.preflight.findings import Finding, error, note

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})
DEFAULT_ENDPOINT: Final = "https://huggingface.co"
HUB_TIMEOUT_S: Final = 1.5


@dataclass(frozen=True)
class ModelLocation:
    """A folder with the model's files, and for a cached hub model its commit."""

    folder: Path
    revision: str = ""


def hub_cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the hub cache huggingface_hub would use with this environment."""
    if explicit := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(explicit).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".cache")
    return Path(cache).expanduser() / "huggingface" / "hub"


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the environment forbids asking the hub."""
    return any(environ.get(key, "").upper() in _TRUE for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_status(model: str, revision: str, endpoint: str = DEFAULT_ENDPOINT) -> str:
    """Ask the hub once for config.json; empty when it would give it, otherwise the reason why not."""
    import urllib3  # only where the hub is asked: its imports take time

    url = f"{endpoint.rstrip('/')}/{model}/resolve/{revision}/config.json"
    timeout = urllib3.Timeout(total=HUB_TIMEOUT_S)
    try:
        with urllib3.PoolManager(num_pools=1) as pool:
            answer = pool.request("HEAD", url, timeout=timeout, retries=False, redirect=False)
    except urllib3.exceptions.HTTPError as problem:
        return f"{endpoint} does not answer within {HUB_TIMEOUT_S} s ({type(problem).__name__})"
    if answer.status in {401, 403}:
        return f"{endpoint} refuses {model} (HTTP {answer.status}): it is private, gated or does not exist"
    if answer.status >= 400:  # noqa: PLR2004 - the range HTTP gives to errors
        return f"{endpoint} has no {model} with a config.json (HTTP {answer.status})"
    return ""


def locate_model(
    model: str,
    *,
    hub_cache: Path,
    offline: bool,
    revision: str = "main",
    ask_hub: Callable[[str, str], str] = hub_status,
) -> tuple[ModelLocation | None, tuple[Finding, ...]]:
    """Find the model's files; None when there are none on this machine, with the findings that say why."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return ModelLocation(folder), ()
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        missing = error(
            "model-missing", "no such folder", subject=model, remedy="give the folder that holds config.json"
        )
        return None, (missing,)
    if not _HUB_ID.fullmatch(model):
        wrong = error(
            "model-name",
            f"neither a folder nor a hub id (got {model!r})",
            remedy="give a folder, or an id such as owner/name",
        )
        return None, (wrong,)
    if cached := _cached(model, hub_cache, revision):
        return cached, ()
    return None, (_not_cached(model, hub_cache, revision, offline=offline, ask_hub=ask_hub),)


def _cached(model: str, hub_cache: Path, revision: str) -> ModelLocation | None:
    repository = hub_cache / f"models--{model.replace('/', '--')}"
    commit = revision if _COMMIT.fullmatch(revision) else ""
    if not commit:
        try:
            commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    snapshot = repository / "snapshots" / commit
    return ModelLocation(snapshot, commit) if commit and snapshot.is_dir() else None


def _not_cached(
    model: str, hub_cache: Path, revision: str, *, offline: bool, ask_hub: Callable[[str, str], str]
) -> Finding:
    if offline:
        return error(
            "hub-offline",
            f"not in the cache {hub_cache}, and offline mode forbids asking the hub",
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
        f"not in the cache {hub_cache}: the engine will download it at the start; its contents were not checked",
        subject=model,
        remedy="download it first to have it checked and the start within its deadline",
    )
