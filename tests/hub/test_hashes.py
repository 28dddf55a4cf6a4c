"""Files of the hub's cache against the hashes they are named by, as the real client fills it."""

from pathlib import Path

import pytest

from servekit.preflight.hub.hashes import check_hashes
from tests.hub.conftest import Program


@pytest.mark.engine
def test_whole_and_damaged_downloads(program: Program) -> None:
    """A whole download has nothing wrong; a byte that changes later, in weights or a small file, is found."""
    assert program.fetch()[0] == 0
    assert list(check_hashes(program.snapshot, "owner/name")) == []
    for name in ("config.json", "model-2.safetensors"):
        with (program.snapshot / name).open("r+b") as file:
            file.write(b"#")
    found = list(check_hashes(program.snapshot, "owner/name"))
    assert [(each.name, Path(each.file).name) for each in found] == [
        ("hash-mismatch", "config.json"),
        ("hash-mismatch", "model-2.safetensors"),
    ]


def test_without_a_cache_there_are_no_hashes(tmp_path: Path) -> None:
    """A folder that is not part of a cache, and a model that the cache does not have, get a note that names them."""
    (tmp_path / "config.json").write_text("{}")
    for folder, model in ((tmp_path, str(tmp_path)), (tmp_path / "snapshots" / "none", "owner/name")):
        assert [(each.name, str(each.severity), each.subject) for each in check_hashes(folder, model)] == [
            ("hashes-unknown", "note", model)
        ]
