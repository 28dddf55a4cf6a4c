"""README.md and the documents it links to: the sample is real output, and every link has a target."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "readme_sample.py"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "gpu" / "README.md"])
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)")


def sample(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run the script that writes the sample the way `make docs` does."""
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_sample_is_what_servekit_prints() -> None:
    """The README shows exactly the command's current output."""
    done = sample("--check")
    assert done.returncode == 0, done.stderr


def test_the_sample_names_every_mistake() -> None:
    """The profile has eight mistakes, and the sample has one line for each."""
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1]
    assert len(re.findall(r"broken\.yaml:\d+", shown)) == 8


def test_a_stale_sample_is_reported_and_replaced(tmp_path: Path) -> None:
    """A stale sample fails the check, which changes nothing; a run without --check restores it."""
    readme, page = (ROOT / "README.md").read_text(encoding="utf-8"), tmp_path / "README.md"
    stale = readme.replace("```\n<!-- end of sample", "one line too many\n```\n<!-- end of sample")
    page.write_text(stale, encoding="utf-8")
    done = sample("--check", str(page))
    assert (done.returncode, page.read_text(encoding="utf-8")) == (1, stale)
    assert "run `make docs`" in done.stderr
    assert sample(str(page)).returncode == 0
    assert page.read_text(encoding="utf-8") == readme


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_has_a_target(page: Path) -> None:
    """Each relative link leads to an existing file, and to an existing heading if it names one."""
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"
