"""A small base with trained-looking weights, rows to calibrate on, and what the reference makes of them."""

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from servekit.demo.build import build_demo_model
from servekit.demo.vocabulary import COMMON_TEXT
from servekit.recipe import verify
from tests.harness.server import ENGINE

PYTHON = ENGINE.with_name("python")
HERE = Path(__file__).parent
Reports = dict[str, list[dict[str, Any]]]


def write_rows(path: Path, count: int) -> Path:
    """Write rows of made-up conversations."""
    source, words = random.Random(3), COMMON_TEXT.split()

    def sentence() -> str:
        return " ".join(source.choices(words, k=source.randint(40, 120)))

    rows = [
        {"messages": [{"role": "user", "content": sentence()}, {"role": "assistant", "content": sentence()}]}
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration file of 160 rows."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 160)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 4 in BF16 with trained-looking weights."""
    folder = tmp_path_factory.mktemp("base")
    build_demo_model(folder / "random", quantized=False)
    subprocess.run([PYTHON, HERE / "trained.py", folder / "random", folder / "base"], check=True)
    return folder / "base"


@pytest.fixture(scope="session")
def variants(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reports]:
    """Checkpoints of the reference, one right and five with a step wrong, and what the program measures of them."""
    folder = tmp_path_factory.mktemp("variants")
    program = Path(verify.__file__).with_name("verify_program.py")
    words = [PYTHON, HERE / "variants.py", base, folder, program, rows]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])
