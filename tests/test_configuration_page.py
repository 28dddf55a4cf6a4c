"""The generated page is what the code says."""

import subprocess
import sys
from pathlib import Path


def generate(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the generator as `make docs` does."""
    program = [sys.executable, str(root / "scripts" / "configuration_page.py"), *words]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_committed_page_is_up_to_date(root: Path) -> None:
    """docs/configuration.md was generated from this very code."""
    done = generate(root, "--check")
    assert done.returncode == 0, done.stderr


def test_stale_page_is_told(root: Path, tmp_path: Path) -> None:
    """A page that is missing or different fails the check with the command that mends it, and is not touched."""
    page = tmp_path / "page.md"
    assert "run `make docs`" in generate(root, "--check", str(page)).stderr
    page.write_text("old")
    assert generate(root, "--check", str(page)).returncode == 1
    assert page.read_text() == "old"
    assert generate(root, str(page)).returncode == 0
    assert page.read_text() == (root / "docs" / "configuration.md").read_text()
