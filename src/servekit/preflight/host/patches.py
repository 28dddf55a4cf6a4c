"""The folder of newer packages that go before the engine's own, and the version that an image decoder must have."""

import re
from pathlib import Path

from servekit.preflight.findings import Finding, error, warning

PILLOW_FLOOR = "13.0.0"
"""An image in a request can exploit older versions (CVE-2026-112403: JPEG heap overflow)."""
_NAME = "engine-patches"
_REMEDY = "make install, or install requirements/engine-patches.txt into a folder and set SERVEKIT_ENGINE_PATCHES"


def is_recent_pillow(version: object) -> bool:
    """Whether `version` is a version of Pillow, and the floor or newer."""
    return isinstance(version, str) and _numbers(version) >= _numbers(PILLOW_FLOOR)


def check_patches(folder: Path | None) -> list[Finding]:
    """Check that the folder (None: there is none) holds a Pillow that may decode images."""
    found = folder.glob("pillow-*.dist-info") if folder else ()
    if any(is_recent_pillow(each.name.removeprefix("pillow-")) for each in found):
        return []
    if folder:
        message = f"{folder} does not hold Pillow {PILLOW_FLOOR} or newer"
        return [error(_NAME, message, subject="--engine-patches", remedy=_REMEDY)]
    message = f"is not there: servekit exits with 7 if the engine's Pillow is older than {PILLOW_FLOOR}"
    return [warning(_NAME, message, subject="--engine-patches", remedy=_REMEDY)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
