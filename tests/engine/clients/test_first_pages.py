"""The first page of each client's documentation, run with the real package: only address, key and model differ."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.harness.endpoint import Endpoint

PROGRAMS = sorted(Path(__file__).parent.glob("*_first_page.py"))
PYTHON = ROOT / ".venv-clients" / "bin" / "python"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem.removesuffix("_first_page"))
def test_first_page_works(program: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    """Every example of the client's first page ends without an error and returns what it should."""
    assert PYTHON.exists(), "`scripts/install.sh clients` puts the client packages there"
    addresses = {
        "OPENAI_BASE_URL": f"{endpoint.url}/v1",
        "OPENAI_API_KEY": endpoint.key,
        "ANTHROPIC_BASE_URL": endpoint.url,
        "ANTHROPIC_API_KEY": endpoint.key,
        "MODEL": "gemma4-demo",
    }
    done = subprocess.run(
        [PYTHON, program],
        env={"PATH": os.defpath, "HOME": str(tmp_path), **addresses},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-3000:]}"
    examples = [line for line in program.read_text().splitlines() if line.startswith("print(")]
    assert len(done.stdout.splitlines()) == len(examples) > 0, done.stdout
