"""The questions in each form in which a copy of the data set may be on a disk."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.measure.eval.lmms import PYTHON, data_maker, needs_lmms_eval

LOAD = """
import json, pathlib, sys
import datasets, pyarrow.parquet
sys.path.append(sys.argv[1])
from servekit.measure.eval.mmmu_questions import ProblemError, load, without_images

copy, top = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
table = load(str(copy), "standard")
datasets.DatasetDict(test=table).save_to_disk(top / "all splits" / "standard (10 options)")
table.save_to_disk(top / "one split")
plain = pyarrow.parquet.read_table(next(copy.glob("standard*/*"))).replace_schema_metadata(None)
(top / "plain [1]" / "standard").mkdir(parents=True)
pyarrow.parquet.write_table(plain, top / "plain [1]" / "standard" / "a.parquet")
(top / "empty").mkdir()
found = {}
for path in (copy, *sorted(top.iterdir())):
    try:
        questions = load(str(path), "standard")
        found[path.name] = [len(questions), questions[6]["image_7"].size[0], "image_1" in without_images(questions)[0]]
    except ProblemError as problem:
        found[path.name] = str(problem)
try:
    load(str(top / "one split"), "vision")
except ProblemError as problem:
    found["vision"] = f"{problem}; {problem.remedy}"
print(json.dumps(found))
"""


@needs_lmms_eval
@pytest.mark.timeout(300)  # it imports the data set library twice
def test_every_form_of_a_copy(tmp_path: Path) -> None:
    """A clone of the hub's repository, what `save_to_disk` writes, and Parquet without a schema are read alike.

    Where there are none, or those of the other half, the problem says what is missing.
    """
    copy, top = tmp_path / "copy", tmp_path / "others"
    top.mkdir()
    subprocess.run(data_maker(copy), check=True, capture_output=True)
    words = [str(PYTHON), "-I", "-c", LOAD, str(ROOT / "src"), str(copy), str(top)]
    environ = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert "no Parquet or Arrow files" in found.pop("empty")
    assert found.pop("vision") == "has no column image; give questions as in MMMU/MMMU_Pro, 'vision'"
    assert found == {name: [7, 88, False] for name in ("copy", "all splits", "one split", "plain [1]")}
