"""The demo checkpoint, intact and ready to be damaged."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from servekit.demo.build import build_demo_model
from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts, inspect_checkpoint
from servekit.preflight.findings import Finding, in_order
from servekit.profile import EngineArguments, resolve

VALUES: Mapping[str, Any] = {
    "gpu-memory-utilization": 0.9,
    "max-model-len": 20_000,
    "max-num-seqs": 1024,
    "max-num-batched-tokens": 4096,
    "quantization": "compressed-tensors",
    "kv-cache-dtype": "fp8_e4m3",
    "limit-mm-per-prompt": {"image": 3, "audio": 0, "video": 0},
}
ARGUMENTS = resolve(VALUES, target="cuda")
SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"
LAYER = "model.language_model.layers"


class Patient:
    """A checkpoint folder that can be damaged: its JSON files, its shard's header and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Rewrite a JSON file after `change` has altered its object in place."""
        path = self.folder / name
        content = json.loads(path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))

    def config(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Alter config.json in place."""
        self.edit("config.json", change)

    def tensors(self, change: Callable[[dict[str, tuple[str, list[int], bytes]]], object]) -> None:
        """Rewrite the shard after `change` has altered its tensors (dtype, shape, data) in place."""
        path = self.folder / SHARD
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        header.pop("__metadata__", None)
        content = {
            name: (entry["dtype"], entry["shape"], raw[8 + length :][slice(*entry["data_offsets"])])
            for name, entry in header.items()
        }
        change(content)
        write_shard(path, content)

    def inspect(
        self, *, target: str = "cuda", arguments: EngineArguments = ARGUMENTS
    ) -> tuple[CheckpointFacts | None, tuple[Finding, ...]]:
        """Preflight the folder."""
        return inspect_checkpoint(self.folder, arguments=arguments, target=target)

    def names(self, **options: Any) -> list[str]:
        """Return the names of preflight's errors and warnings, each once, errors first."""
        _, findings = self.inspect(**options)
        return list(dict.fromkeys(finding.name for finding in in_order(findings) if finding.severity != "note"))


def write_shard(path: Path, content: Mapping[str, tuple[str, list[int], bytes]]) -> None:
    """Write a safetensors file of the given tensors."""
    header, position = {}, 0
    for name, (dtype, shape, data) in content.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in content.values()))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quantized demo checkpoint; read-only."""
    folder = tmp_path_factory.mktemp("preflight") / "tiny"
    build_demo_model(folder, size="tiny")
    return folder


@pytest.fixture(scope="session")
def demo_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint without quantization; read-only."""
    folder = tmp_path_factory.mktemp("preflight") / "tiny-bf16"
    build_demo_model(folder, size="tiny", quantized=False)
    return folder


@pytest.fixture
def patient(demo: Path, tmp_path: Path) -> Patient:
    """A copy of the quantized demo checkpoint to damage."""
    return Patient(shutil.copytree(demo, tmp_path / "checkpoint"))


@pytest.fixture
def patient_bf16(demo_bf16: Path, tmp_path: Path) -> Patient:
    """A copy of the demo checkpoint without quantization to damage."""
    return Patient(shutil.copytree(demo_bf16, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def arguments() -> EngineArguments:
    """The engine arguments of the model card."""
    return ARGUMENTS
