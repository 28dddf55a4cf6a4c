"""A hub with one model, and the program that downloads from it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.serve.engine import hub_program
from tests.hub.rig import Hub, Repository, hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "team/model"
SIZE = 600_000


@pytest.fixture
def python(root: Path) -> Path:
    """The engine's Python, whose client is the real one."""
    return root / ".venv-engine/bin/python"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The files of a model: two shards, small ones, and one of another format."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, size in {"model-1.safetensors": SIZE, "model-2.safetensors": SIZE // 2, "pytorch_model.bin": 10}.items():
        (folder / name).write_bytes(bytes(byte % 251 for byte in range(size)))
    (folder / "config.json").write_text('{"model_type": "gemma4"}')
    (folder / "empty.json").write_text("")
    return folder


@pytest.fixture
def server(model: Path) -> Iterator[Hub]:
    """A hub with that model."""
    with hub(team__model=Repository(model, COMMIT)) as running:
        yield running


class Program:
    """The program as the engine's Python runs it, with a cache of its own."""

    def __init__(self, python: Path, cache: Path, server: Hub, **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
        own = {"HF_HUB_CACHE": str(cache), "HF_HOME": str(cache), "HF_ENDPOINT": server.url}
        self.environ = kept | own | variables
        self.command = [str(python), "-I", hub_program.__file__]
        self.snapshot = cache / "models--team--model" / "snapshots" / COMMIT

    def run(self, *words: str) -> tuple[int, list[dict[str, Any]]]:
        """Run it to its end; its exit code and what it printed."""
        done = subprocess.run(
            [*self.command, *words], env=self.environ, capture_output=True, text=True, check=False, timeout=50
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def fetch(self) -> tuple[int, list[dict[str, Any]]]:
        """Fetch the model's main revision."""
        return self.run("fetch", MODEL, "main")


@pytest.fixture
def program(python: Path, tmp_path: Path, server: Hub) -> Program:
    """The program with an empty cache."""
    return Program(python, tmp_path / "cache", server)
