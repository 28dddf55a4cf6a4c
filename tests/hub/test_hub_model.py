"""What of a hub model is in the cache, by the file system alone; which Python runs the engine."""

import errno
import json
from pathlib import Path

import pytest

from servekit.preflight.hub import hub_program
from servekit.preflight.hub.hub_model import (
    HubModel,
    find_hub_model,
    hub_cache_folder,
    is_offline,
    is_whole,
    not_found,
    python_of,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "salve-mundii/gemma4-E4B-opt"
WHOLE = ("config.json", "tokenizer.json", "model.safetensors")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache with one model, as huggingface_hub lays it out."""
    repository = tmp_path / "hub" / "models--salve-mundii--gemma4-E4B-opt"
    (repository / "refs" / "pr").mkdir(parents=True)
    for reference in ("main", "pr/1"):
        (repository / "refs" / reference).write_text(COMMIT)
    fill(repository / "snapshots" / COMMIT, *WHOLE)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc.incomplete").write_bytes(b"12345")
    return tmp_path / "hub"


@pytest.fixture
def engine_script(tmp_path: Path) -> Path:
    """A program that Python runs, named by way of env."""
    path = tmp_path / "vllm"
    path.write_text("#!/usr/bin/env python3\n")
    path.chmod(0o755)
    return path


def fill(folder: Path, *names: str) -> Path:
    """Put files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("x")
    return folder


def find(cache: Path, model: str = MODEL, revision: str = "", engine: str | Path = "", **environ: str) -> HubModel:
    """Look for a hub model."""
    found = find_hub_model(model, revision, {"HF_HUB_CACHE": str(cache)} | environ, str(engine))
    assert found is not None
    return found


@pytest.mark.parametrize("revision", ["", "main", "pr/1", COMMIT])
def test_whole_model_needs_no_hub(cache: Path, engine_script: Path, revision: str) -> None:
    """A whole model is found by branch or commit; the engine gets its commit, and no download goes before it."""
    found = find(cache, revision=revision, engine=engine_script)
    assert (found.commit, found.whole, found.prefix) == (COMMIT, True, ())
    assert found.pinned == ("--revision", COMMIT)
    assert found.snapshot == cache / "models--salve-mundii--gemma4-E4B-opt" / "snapshots" / COMMIT


@pytest.mark.parametrize("name", WHOLE)
def test_incomplete_model_is_downloaded(cache: Path, engine_script: Path, name: str) -> None:
    """A model without one of its files is downloaded by the engine's Python, and partial files count."""
    (find(cache).snapshot / name).unlink()
    found = find(cache, engine=engine_script)
    assert (found.commit, found.whole, found.cached_bytes, found.pinned) == (COMMIT, False, 5, ())
    assert Path(found.prefix[0]).name == "python3"
    assert found.prefix[1:] == ("-I", hub_program.__file__, "fetch", MODEL, "main", "--")


def test_other_revision_is_not_the_cached_one(cache: Path, engine_script: Path) -> None:
    """A revision that is not in the cache is not replaced by another."""
    found = find(cache, revision="v2", engine=engine_script)
    assert (found.commit, found.whole, found.prefix[-2:]) == ("", False, ("v2", "--"))
    assert not found.snapshot.exists()


def test_unknown_python_leaves_the_download_to_the_engine(cache: Path) -> None:
    """Without the engine's Python the engine starts as it is, with the revision that was asked for."""
    found = find(cache, revision="v2")
    assert (found.prefix, found.pinned) == ((), ("--revision", "v2"))


def test_offline_nothing_is_downloaded(cache: Path, engine_script: Path) -> None:
    """Offline mode forbids the download."""
    found = find(cache, model="owner/other", engine=engine_script, HF_HUB_OFFLINE="1")
    assert (found.offline, found.prefix) == (True, ())


def test_folder_is_no_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is taken as it is, also one that this user may not look for; what cannot be a path may be a hub id."""
    assert find_hub_model(str(tmp_path), "", {}, "") is None
    assert find_hub_model("a" * 300, "", {}, "") is not None

    def hidden(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", hidden)
    assert find_hub_model("models/gemma", "", {}, "") is None


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        ("/no/such/folder", "model-missing"),
        ("./nothing", "model-missing"),
        ("a/b/c", "model-missing"),
        ("a b", "model-name"),
    ],
)
def test_absent_models_are_told_apart(model: str, finding: str) -> None:
    """A missing folder and a wrong name each have a finding."""
    assert find_hub_model(model, "", {}, "") is None
    assert not_found(model).name == finding


@pytest.mark.parametrize(
    ("weights", "index", "whole"),
    [
        (["a.safetensors", "b.safetensors"], ["a.safetensors", "b.safetensors"], True),
        (["a.safetensors"], ["a.safetensors", "b.safetensors"], False),
        (["model-00001-of-00002.safetensors"], [], False),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], [], True),
    ],
)
def test_every_weight_must_be_there(tmp_path: Path, weights: list[str], index: list[str], *, whole: bool) -> None:
    """A snapshot is whole with every file that the index names, or that the numbers in the names promise."""
    fill(tmp_path, *WHOLE[:2], *weights)
    if index:
        text = json.dumps({"weight_map": {f"tensor{number}": name for number, name in enumerate(index)}})
        (tmp_path / "model.safetensors.index.json").write_text(text)
    assert is_whole(tmp_path) is whole


def test_a_broken_link_is_no_file(tmp_path: Path) -> None:
    """A snapshot whose blob was deleted is not whole."""
    fill(tmp_path, *WHOLE[:2])
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    assert not is_whole(tmp_path)


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("#!/usr/bin/python3\n", "/usr/bin/python3"),
        ("#!/usr/bin/python3 -I\n", "/usr/bin/python3"),
        ("#!/bin/sh\n'''exec' \"/usr/bin/python3\" \"$0\" \"$@\"\n' '''\n", "/usr/bin/python3"),
        ("#!/bin/sh\n'''exec' /usr/bin/python3 \"$0\" \"$@\"\n' '''\n", "/usr/bin/python3"),
        ("#!/bin/sh\nexec /usr/bin/python3 other\n", ""),
        ("#!/no/such/python\n", ""),
        ("\x7fELF", ""),
    ],
)
def test_python_of_a_program(engine_script: Path, text: str, python: str) -> None:
    """The first lines name the Python; a wrapper in another language has none."""
    engine_script.write_text(text)
    assert python_of(str(engine_script), {}) == python
    assert python_of("vllm", {"PATH": str(engine_script.parent)}) == python
    assert python_of("no-such-program", {"PATH": str(engine_script.parent)}) == ""


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_cache_folder_follows_the_environment(environ: dict[str, str], folder: str) -> None:
    """The cache folder is the one that huggingface_hub uses."""
    assert hub_cache_folder(environ) == Path(folder)


def test_offline_mode_is_read_as_huggingface_does() -> None:
    """Either library's variable enables offline mode."""
    assert is_offline({"HF_HUB_OFFLINE": "1"})
    assert is_offline({"TRANSFORMERS_OFFLINE": "true"})
    assert not is_offline({"HF_HUB_OFFLINE": "0"})
