"""lmms-eval's environment, where it is installed."""

from pathlib import Path

import pytest

from tests.conftest import ROOT

PYTHON = ROOT / ".venv-eval" / "bin" / "python"
needs_lmms_eval = pytest.mark.skipif(not PYTHON.exists(), reason="lmms-eval is not installed: scripts/install.sh eval")
OPTIONS = [f"option {letter}" for letter in "abcdefghij"]
MAKE_DATA = """
import sys
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

folder, options = sys.argv[1:]
numbers = range(1, 8)

def picture(number):
    return Pillow.new("RGB", (32 + 8 * number, 32), (30 * number, 80, 120))

def write(name, rows):
    pictures = [key for key in rows[0] if key.startswith("image")]
    texts = {key: Value("string") for key in rows[0] if key not in pictures}
    table = Dataset.from_list(rows, Features(texts | {key: Image() for key in pictures}))
    table.to_parquet(f"{folder}/{name}/test-00000-of-00001.parquet")

common = [{"id": f"test_Art_{n}", "options": options, "answer": "ABCDEFGHIJ"[n], "subject": "Art"} for n in numbers]
write("standard (10 options)", [
    row
    | {"question": "SECRET question: " + " ".join(f"<image {k}>" for k in numbers if k <= n), "explanation": "?"}
    | {f"image_{k}": picture(k) if k <= n else None for k in numbers}
    for n, row in zip(numbers, common)
])
write("vision", [row | {"image": picture(n)} for n, row in zip(numbers, common)])
"""
"""Writes a data set like MMMU/MMMU_Pro: seven questions of each half, the standard ones with 1 to 7 images."""


def data_maker(folder: Path) -> list[str]:
    """Return the command that writes such a data set."""
    for name in ("standard (10 options)", "vision"):
        (folder / name).mkdir(parents=True)
    return [str(PYTHON), "-I", "-c", MAKE_DATA, str(folder), repr(OPTIONS)]
