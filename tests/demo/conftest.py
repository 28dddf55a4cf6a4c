"""Fixtures of the checkpoint tests."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servekit.demo.build import build_demo_model


@dataclass(frozen=True)
class ParsedShard:
    """A safetensors file, parsed according to the format's specification."""

    entries: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    data: bytes
    data_offset: int

    def bytes_of(self, name: str) -> bytes:
        """Return the elements of one tensor."""
        first, last = self.entries[name]["data_offsets"]
        return self.data[first:last]


@pytest.fixture(scope="session")
def parse_shard() -> Callable[[Path], ParsedShard]:
    """Read a safetensors file."""

    def parse(path: Path) -> ParsedShard:
        content = path.read_bytes()
        data_offset = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:data_offset])
        return ParsedShard(entries, entries.pop("__metadata__"), content[data_offset:], data_offset)

    return parse


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the quantized tiny checkpoint; read-only."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    build_demo_model(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the tiny checkpoint at full precision; read-only."""
    directory = tmp_path_factory.mktemp("models") / "tiny-bf16"
    build_demo_model(directory, quantized=False)
    return directory
