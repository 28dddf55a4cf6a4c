"""Building the demo checkpoint, and finding it again."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from servekit.demo import build as demo
from servekit.demo.build import RECORD, build_demo_model, demo_directory, ensure_demo_model
from servekit.demo.sizes import TINY
from servekit.demo.tensor_list import tensors
from servekit.errors import ConfigurationError


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_checkpoint_has_every_file_the_engine_reads(tiny: Path, parse_shard: Callable[[Path], Any]) -> None:
    """Weights, configuration, tokenizer, processor and chat template are there, and the weights are complete."""
    assert set(contents(tiny)) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        RECORD,
        "tokenizer.json",
        "tokenizer_config.json",
    }
    parsed = parse_shard(tiny / "model.safetensors")
    assert set(parsed.entries) == {tensor.name for tensor in tensors(TINY, quantized=True)}
    assert sum(len(content) for content in contents(tiny).values()) < 10_000_000


def test_a_tiny_model_has_the_real_vocabulary(tmp_path: Path, parse_shard: Callable[[Path], Any]) -> None:
    """tiny-262k has 262,144 tokens, a row for each in both tables, and is small enough for a test."""
    build_demo_model(tmp_path / "wide", size="tiny-262k")
    tokens = json.loads((tmp_path / "wide" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(tokens) == max(tokens.values()) + 1 == 262_144
    entries = parse_shard(tmp_path / "wide" / "model.safetensors").entries
    tables = [entry["shape"] for name, entry in entries.items() if "embed_tokens" in name]
    assert [rows for rows, _width in tables] == [262_144, 262_144]
    assert sum(len(content) for content in contents(tmp_path / "wide").values()) < 120_000_000


def test_configuration_tells_quantized_and_full_precision_apart(tiny: Path, tiny_bf16: Path) -> None:
    """Only the quantized checkpoint has a quantization section: W4A16, groups of 128, static ordering."""
    config = json.loads((tiny / "config.json").read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["actorder"]) == (4, 128, "static")
    assert config["vision_config"]["default_output_length"] == 70
    assert "quantization_config" not in json.loads((tiny_bf16 / "config.json").read_text())


def test_same_seed_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    """A second build equals the first, byte for byte; another seed does not."""
    build_demo_model(tmp_path / "again")
    build_demo_model(tmp_path / "other", seed=1)
    assert contents(tmp_path / "again") == contents(tiny)
    assert contents(tmp_path / "other")["model.safetensors"] != contents(tiny)["model.safetensors"]


def test_empty_folder_is_filled_and_missing_parents_are_made(tmp_path: Path) -> None:
    """An empty folder works like a missing one, and the build leaves nothing beside it."""
    target = tmp_path / "models" / "demo"
    target.mkdir(parents=True)
    build_demo_model(target)
    build_demo_model(tmp_path / "new" / "deep" / "demo")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["demo"]
    assert (tmp_path / "new" / "deep" / "demo" / "config.json").is_file()


def test_occupied_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    """A folder that is not empty stays unchanged, and the error names it and the remedy."""
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"not empty.*name a new one") as refusal:
        build_demo_model(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """A target that is a file is rejected."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file"):
        build_demo_model(tmp_path / "file")


def test_small_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 10 GB build of e4b does not start on a disk that is too small, and leaves nothing behind."""
    usage = namedtuple("usage", ["total", "used", "free"])  # noqa: PYI024 -- what shutil.disk_usage returns
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**10, 0, 10**10))
    with pytest.raises(ConfigurationError, match=r"needs 10\.1 GB \(got 10\.0 GB free\)"):
        build_demo_model(tmp_path / "demo", size="e4b")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target does not appear before it is complete, and the partial folder is removed."""

    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_texts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_demo_model(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step logs one line with the progress."""
    monkeypatch.setattr(demo, "PROGRESS_BYTES", 2_000_000)
    lines: list[str] = []
    build_demo_model(tmp_path / "demo", progress=lines.append)
    assert len(lines) == 3
    assert all("of 0.0 GB of weights written" in line for line in lines)


def test_ensure_builds_once_and_finds_it_again(tmp_path: Path) -> None:
    """The second call returns the same folder unchanged; another seed or precision has a separate folder."""
    first = ensure_demo_model(tmp_path)
    born = (first / "model.safetensors").stat().st_ino
    assert ensure_demo_model(tmp_path) == first == demo_directory(tmp_path)
    assert (first / "model.safetensors").stat().st_ino == born
    others = {ensure_demo_model(tmp_path, seed=1), ensure_demo_model(tmp_path, quantized=False)}
    assert len({first, *others}) == 3


@pytest.mark.parametrize("harm", ["truncated", "deleted", "no record", "broken record", "older generator"])
def test_ensure_replaces_what_is_damaged_or_outdated(tmp_path: Path, tiny: Path, harm: str) -> None:
    """A checkpoint that differs from what this version would build is rebuilt, and a line says so."""
    directory = ensure_demo_model(tmp_path)
    record = directory / RECORD
    if harm == "truncated":
        (directory / "model.safetensors").write_bytes(b"")
    elif harm == "deleted":
        (directory / "config.json").unlink()
    elif harm == "no record":
        record.unlink()
    elif harm == "broken record":
        record.write_text("[]")
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"generator": 0}))
    lines: list[str] = []
    assert ensure_demo_model(tmp_path, progress=lines.append) == directory
    assert contents(directory) == contents(tiny)
    assert "replacing" in lines[0]


def test_ensure_sweeps_what_a_killed_build_left(tmp_path: Path) -> None:
    """The next build removes the partial folder of a killed one."""
    directory = ensure_demo_model(tmp_path)
    directory.rename(tmp_path / f".{directory.name}.partial-killed")
    ensure_demo_model(tmp_path)
    assert not list(tmp_path.glob(".*.partial-*"))


def test_many_at_once_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several concurrent callers one builds, and all get the same complete folder."""
    builds: list[Path] = []

    def counted(directory: Path, **options: Any) -> None:
        builds.append(directory)
        build_demo_model(directory, **options)

    monkeypatch.setattr(demo, "build_demo_model", counted)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ensure_demo_model, [tmp_path] * 4))
    assert len(found) == len(builds) == 1
