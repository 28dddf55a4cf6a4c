"""The generated pages match the code."""

import subprocess
import sys
from pathlib import Path

import pytest

PAGES = {
    "configuration_page.py": "docs/configuration.md",
    "requests_page.py": "docs/requests.md",
    "prometheus_rule.py": "deploy/kubernetes/overlays/observability/prometheusrule.yaml",
}


def generate(root: Path, script: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a generator the way `make docs` does."""
    program = [sys.executable, str(root / "scripts" / script), *words]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", PAGES)
def test_committed_page_is_up_to_date(root: Path, script: str) -> None:
    """The page matches the current code."""
    done = generate(root, script, "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", PAGES)
def test_stale_page_is_told(root: Path, tmp_path: Path, script: str) -> None:
    """A missing or different page fails the check with the command that fixes it, and is not changed."""
    page = tmp_path / "page.md"
    assert "run `make docs`" in generate(root, script, "--check", str(page)).stderr
    page.write_text("old")
    assert generate(root, script, "--check", str(page)).returncode == 1
    assert page.read_text() == "old"
    assert generate(root, script, str(page)).returncode == 0
    assert page.read_text() == (root / PAGES[script]).read_text()
