"""A small valid profile, a folder for invalid ones, and vLLM's own parser."""

import json
import subprocess
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ConfigurationError, ExitCode
from servekit.profile import load_profile

ROOT = Path(__file__).parents[2]
ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"

ANSWER = "parsed: "
"""What an answer of engine_parser.py begins with; vLLM may print other lines."""

SMALLEST = """\
kv-cache-dtype: fp8_e4m3
quantization: compressed-tensors
max-num-seqs: 1024
limit-mm-per-prompt:
  image: 3
  audio: 0
  video: 0
"""

Write = Callable[[str], Path]
Parse = Callable[[list[list[str]]], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository, with the files it ships."""
    return ROOT


@pytest.fixture
def smallest() -> str:
    """Return the shortest profile that meets the contract: seven lines."""
    return SMALLEST


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a text to profile.yaml in a new working folder, and return its path as a user would type it."""
    monkeypatch.chdir(tmp_path)

    def write_profile(text: str) -> Path:
        path = Path("profile.yaml")
        path.write_bytes(text.encode())
        return path

    return write_profile


@pytest.fixture(scope="session")
def refused() -> Callable[..., list[str]]:
    """Load a profile that must be rejected, and return the lines of the error."""

    def refuse(path: Path, *, deviate: Collection[str] = ()) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            load_profile(path, deviate=deviate)
        assert caught.value.exit_code is ExitCode.CONFIGURATION
        return str(caught.value).splitlines()

    return refuse


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """Return the Python that can import vLLM."""
    if not ENGINE_PYTHON.exists():
        pytest.skip("needs .venv-engine")
    return ENGINE_PYTHON


@pytest.fixture(scope="session")
def parse_with_engine(engine_python: Path) -> Iterator[Parse]:
    """Parse command lines with vLLM's own parser; return for each its values, or `{"error": message}`."""
    program = [engine_python, Path(__file__).with_name("engine_parser.py")]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        requests, answers = process.stdin, process.stdout

        def parse(lines: list[list[str]]) -> list[dict[str, Any]]:
            requests.write(json.dumps(lines) + "\n")
            requests.flush()
            for answer in answers:
                if answer.startswith(ANSWER):
                    parsed: list[dict[str, Any]] = json.loads(answer.removeprefix(ANSWER))
                    return parsed
            pytest.fail(f"{program} ended: {process.wait()}")

        yield parse
        requests.close()
