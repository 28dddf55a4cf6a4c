"""Paths that exist and are no checkpoint: a file, or the hub cache's folder of a repository."""

from pathlib import Path

from servekit.preflight.findings import Finding, error


def wrong_path(path: Path) -> Finding | None:
    """Return what is wrong with a path given as the model; None for a folder that may be one, and for no path."""
    if path.is_file():
        return error(
            "model-missing",
            "is a file, not a folder",
            subject=str(path),
            remedy="give the folder that holds config.json and *.safetensors",
        )
    snapshots = sorted(path.glob("snapshots/*/config.json"), key=lambda config: config.lstat().st_mtime)
    if snapshots and not (path / "config.json").exists():
        return error(
            "model-missing",
            "is the hub cache's folder of a repository: the model is in its folder snapshots/COMMIT",
            subject=str(path),
            remedy=f"give {snapshots[-1].parent}",
        )
    return None
