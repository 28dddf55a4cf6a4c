"""A hub with one model, and the program that downloads from it."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.demo.build import build_demo_model
from servekit.preflight.hub import hub_program
from servekit.preflight.hub.hub_program import MARK
from tests.harness.endpoint import Endpoint, clean_environment
from tests.hub.rig import Hub, Repository, hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "team/model"
SIZE = 600_000
DEMO = "team/demo"
FAKE = Path(__file__).parents[1] / "serve" / "fake_engine.py"


@pytest.fixture(scope="session")
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


def hub_environment(cache: Path, server: Hub) -> dict[str, str]:
    """The environment without settings of servekit and without proxies, for that hub and that cache."""
    kept = {name: value for name, value in clean_environment().items() if not name.upper().endswith("_PROXY")}
    return kept | {"HF_HUB_CACHE": str(cache), "HF_HOME": str(cache), "HF_ENDPOINT": server.url}


class Program:
    """The program as the engine's Python runs it, with a cache of its own."""

    def __init__(self, python: Path, cache: Path, server: Hub, **variables: str) -> None:
        self.environ = hub_environment(cache, server) | variables
        self.command = [str(python), "-I", hub_program.__file__]
        self.snapshot = cache / "models--team--model" / "snapshots" / COMMIT

    def run(self, *words: str) -> tuple[int, list[dict[str, Any]]]:
        """Run it to its end; its exit code and what it printed."""
        done = subprocess.run(
            [*self.command, *words], env=self.environ, capture_output=True, text=True, check=False, timeout=250
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines()]

    def fetch(self) -> tuple[int, list[dict[str, Any]]]:
        """Fetch the model's main revision."""
        return self.run("fetch", MODEL, "main")


@pytest.fixture
def program(python: Path, tmp_path: Path, server: Hub) -> Program:
    """The program with an empty cache."""
    return Program(python, tmp_path / "cache", server)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint; read-only."""
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    build_demo_model(folder, size="tiny")
    return folder


@pytest.fixture
def demo_checkpoint(demo: Path, tmp_path: Path) -> Path:
    """The files of the model in the hub, which a test may alter."""
    return Path(shutil.copytree(demo, tmp_path / "checkpoint"))


@pytest.fixture
def demo_hub(demo_checkpoint: Path) -> Iterator[Hub]:
    """A hub with the demo checkpoint."""
    with hub(team__demo=Repository(demo_checkpoint, COMMIT)) as running:
        yield running


@pytest.fixture
def environ(tmp_path: Path, demo_hub: Hub, python: Path) -> dict[str, str]:
    """The environment of a start whose engine is the fake one, run by the real engine's Python."""
    script = tmp_path / "vllm"
    script.write_text(
        f"#!{python}\nimport runpy, sys\nsys.path[0] = ''\nrunpy.run_path({str(FAKE)!r}, run_name='__main__')\n"
    )
    script.chmod(0o755)
    own = {name: str(tmp_path / name.lower()) for name in ("SERVEKIT_STATE_DIR", "SERVEKIT_CACHE_DIR")}
    engine = {"SERVEKIT_ENGINE": str(script), "SERVEKIT_TARGET": "cpu", "SERVEKIT_MODEL": DEMO}
    return hub_environment(tmp_path / "hub-cache", demo_hub) | own | engine


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """The folder of the model's files in the cache."""
    return tmp_path / "hub-cache" / "models--team--demo" / "snapshots" / COMMIT


@pytest.fixture
def serve(environ: dict[str, str]) -> Iterator[Callable[..., Endpoint]]:
    """Start endpoints; afterwards end them, and fail if a process is left."""
    started: list[Endpoint] = []

    def start(*flags: str, **variables: str) -> Endpoint:
        started.append(Endpoint(flags, environ | variables, model="demo").start())
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.finish()
