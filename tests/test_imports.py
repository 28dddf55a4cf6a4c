"""Which modules each command loads, from Python's own record of the real program's imports."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import find_free_port

PROGRAM = Path(sys.executable).with_name("servekit")
SERVING = ("servekit.serve.supervisor", "servekit.observe", "servekit.run")
"""Modules that only a serving endpoint needs."""
ROOMS = set(
    "cli demo errors file_trouble logs nvml observe preflight profile run serve settings thread_pool".split()  # noqa: SIM905 - one line
)
"""The parts of servekit that `serve` loads: not measure, tune, recipe or scale."""
Loaded = Callable[..., set[str]]


@pytest.fixture
def loaded(root: Path, tmp_path: Path) -> Loaded:
    """Run `servekit` to its end and return the modules that it loaded."""

    def run(*words: str, code: int) -> set[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")}
        own = {"PYTHONPROFILEIMPORTTIME": "1", "SERVEKIT_CACHE_DIR": str(tmp_path), "SERVEKIT_STATE_DIR": str(tmp_path)}
        ended = subprocess.run(
            [PROGRAM, *words], cwd=root, env=clean | own, capture_output=True, text=True, check=False, timeout=250
        )
        assert ended.returncode == code, ended.stderr[-2000:]
        return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", ended.stderr, re.MULTILINE))

    return run


def test_check_loads_nothing_of_serving(loaded: Loaded, tmp_path: Path) -> None:
    """`servekit check` checks the whole plan of a start without loading the code that serves it."""
    modules = loaded("check", "--target", "cpu", "--model", str(tmp_path), code=3)
    assert {"servekit.preflight.memory.memory_plan", "servekit.serve.start_check"} <= modules
    assert sorted(name for name in modules if name.startswith(SERVING)) == []


def test_a_check_of_the_profile_alone_loads_no_more(loaded: Loaded) -> None:
    """`--profile-only` loads neither the host's checks nor the plan of a start, nor Jinja without a template."""
    modules = loaded("check", "--profile-only", code=0)
    assert "servekit.profile.files.named_files" in modules
    unwanted = ("servekit.serve", "servekit.preflight.examine", "servekit.preflight.host", "jinja2", "urllib3", "http")
    assert sorted(name for name in modules if name.startswith(unwanted)) == []


def test_serve_loads_its_own_rooms_only(loaded: Loaded, tmp_path: Path) -> None:
    """`servekit serve` loads no module that it does not need."""
    words = ("--target", "cpu", "--model", str(tmp_path), "--engine", "/nowhere/vllm", "--no-auth")
    modules = loaded("serve", *words, "--observe-port", str(find_free_port()), code=3)
    assert "servekit.serve.supervisor" in modules
    assert {name.split(".")[1] for name in modules if name.startswith("servekit.")} == ROOMS
