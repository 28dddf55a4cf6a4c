"""The folder of newer packages: it exists, and its Pillow has no published vulnerabilities."""

from pathlib import Path

import pytest

from servekit.preflight.findings import Severity
from servekit.preflight.host.patches import PILLOW_FLOOR, check_patches, is_recent_pillow
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("version", "recent"),
    [
        *((PILLOW_FLOOR, True), ("13.0.1", True), ("13.1", True), ("14.0.0.dev0", True)),
        *(("12.2.0", False), ("9.5.0.post2", False), ("", False), (None, False), (13, False)),
    ],
)
def test_versions_are_compared_as_numbers(*, version: object, recent: bool) -> None:
    """Older versions, and values that are not versions, are not recent."""
    assert is_recent_pillow(version) is recent


def test_a_folder_with_the_floor_is_good(tmp_path: Path) -> None:
    """A folder with the lowest allowed version has no findings."""
    (tmp_path / f"pillow-{PILLOW_FLOOR}.dist-info").mkdir()
    assert check_patches(tmp_path) == []


@pytest.mark.parametrize("held", ["", "pillow-12.2.0.dist-info", "numpy-13.0.0.dist-info"])
def test_a_folder_without_it_stops_the_start(tmp_path: Path, held: str) -> None:
    """A folder that is missing, or has an older version, is an error of the setting."""
    (tmp_path / "folder" / held).mkdir(parents=True)
    for folder in (tmp_path / "folder", tmp_path / "nowhere"):
        (found,) = check_patches(folder)
        assert (found.name, found.severity) == ("engine-patches", Severity.ERROR)
        assert str(folder) in found.message


def test_no_folder_is_a_warning() -> None:
    """The engine's own Pillow may be recent, which servekit checks on the running engine."""
    (found,) = check_patches(None)
    assert (found.name, found.severity) == ("engine-patches", Severity.WARNING)


def test_the_lock_holds_the_floor() -> None:
    """The lock pins the required Pillow by hash, and the advisory that it closes is listed."""
    lock = (ROOT / "requirements" / "engine-patches.txt").read_text()
    wanted = (ROOT / "requirements" / "engine-patches.in").read_text()
    assert f"pillow=={PILLOW_FLOOR} \\\n    --hash=sha256:" in lock
    assert "CVE-2026-112403" in wanted
    assert "CVE-2026-112403" in (ROOT / "docs" / "security.md").read_text()
