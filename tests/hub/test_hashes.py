"""Files of the hub's cache against the hashes they are named by, as the real client fills it."""

from pathlib import Path

import pytest

from servekit.preflight.checkpoint.hashes import check_hashes
from tests.hub.conftest import Program
from tests.hub.rig import Hub


@pytest.mark.engine
def test_whole_and_damaged_downloads(program: Program, server: Hub) -> None:
    """A whole download has nothing wrong; a store that flips a bit of each large file is found, file by file."""
    assert program.fetch()[0] == 0
    seen: list[tuple[int, int]] = []
    assert list(check_hashes(program.snapshot, lambda done, total: seen.append((done, total)))) == []
    assert seen[-1] == (900_024, 900_024)
    for path in program.snapshot.glob("*.safetensors"):
        path.resolve().unlink()
    server.faults.corrupt = True
    assert program.fetch()[0] == 0
    found = list(check_hashes(program.snapshot))
    assert [(each.name, Path(each.subject).name) for each in found] == [
        ("hash-mismatch", "model-1.safetensors"),
        ("hash-mismatch", "model-2.safetensors"),
    ]


def test_a_plain_folder_has_no_hashes(tmp_path: Path) -> None:
    """A folder that is not part of a cache is told so, and is no error."""
    (tmp_path / "config.json").write_text("{}")
    assert [(each.name, str(each.severity)) for each in check_hashes(tmp_path)] == [("hashes-unknown", "note")]
