"""The folder of newer packages that precede the engine's own, and the version that an image decoder must have."""

import re
from pathlib import Path

from servekit.file_trouble import find_trouble
from servekit.preflight.findings import Finding, error, warning

PILLOW_FLOOR = "13.0.0"
"""An image in a request can exploit older versions (CVE-2026-112403: JPEG heap overflow)."""


def is_recent_pillow(version: object) -> bool:
    """Whether `version` is a version of Pillow, and the floor or newer."""
    return isinstance(version, str) and version_numbers(version) >= version_numbers(PILLOW_FLOOR)


def check_patches(folder: Path | None) -> list[Finding]:
    """Check that the folder holds a Pillow that may decode images; None: there is no folder."""
    if folder and (why := find_trouble(folder)):
        return [error("engine-patches", subject="--engine-patches", **why)]
    found = folder.glob("pillow-*.dist-info") if folder else ()
    if any(is_recent_pillow(each.name.removeprefix("pillow-")) for each in found):
        return []
    report = error if folder else warning
    return [
        report(
            "engine-patches",
            f"{folder} does not hold Pillow {PILLOW_FLOOR} or newer"
            if folder
            else f"is not set: servekit exits with 7 if the engine's Pillow is older than {PILLOW_FLOOR}",
            subject="--engine-patches",
            remedy="make install, or install requirements/engine-patches.txt into a folder and set "
            "SERVEKIT_ENGINE_PATCHES",
        )
    ]


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version; fewer where it has fewer."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
