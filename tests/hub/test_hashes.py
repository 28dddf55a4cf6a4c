"""Files of the hub's cache against the hashes they are named by, as the real client fills it."""

from pathlib import Path

import pytest

from servekit.preflight.hub.hashes import check_hashes
from tests.hub.conftest import Program


@pytest.mark.engine
def test_whole_and_damaged_downloads(program: Program) -> None:
    """A whole download has nothing wrong; a byte that changes later, in weights or a small file, is found."""
    assert program.fetch()[0] == 0
    assert list(check_hashes(program.snapshot)) == []
    for name in ("config.json", "model-2.safetensors"):
        with (program.snapshot / name).open("r+b") as file:
            file.write(b"#")
    found = list(check_hashes(program.snapshot))
    assert [(each.name, Path(each.file).name) for each in found] == [
        ("hash-mismatch", "config.json"),
        ("hash-mismatch", "model-2.safetensors"),
    ]


def test_a_plain_folder_has_no_hashes(tmp_path: Path) -> None:
    """A folder that is not part of a cache is told so, and is no error."""
    (tmp_path / "config.json").write_text("{}")
    assert [(each.name, str(each.severity)) for each in check_hashes(tmp_path)] == [("hashes-unknown", "note")]
