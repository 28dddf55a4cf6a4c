"""The schema for editors, compared with the files and with `load_profile`."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from servekit.profile import CONTRACT
from servekit.profile.argument_table import engine_arguments
from servekit.profile.json_schema import profile_schema
from servekit.profile.reserved import RESERVED


def test_is_a_schema_with_a_description_for_every_key() -> None:
    """The schema is valid in its dialect, is plain JSON, and describes each key that a profile may have."""
    schema: dict[str, Any] = profile_schema()
    Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    assert set(schema["properties"]) == set(engine_arguments()) - set(RESERVED)
    assert all(row["description"] for row in schema["properties"].values())
    assert schema["required"] == list(CONTRACT)
    assert schema["properties"]["gpu-memory-utilization"]["maximum"] == 1


def test_shipped_files_are_valid(root: Path) -> None:
    """The shipped profile is valid; the baseline is valid only with its two deviations."""
    assert problems(profile_schema(), (root / "vllm_config.yaml").read_text()) == []
    baseline = (root / "profiles" / "fp16-baseline.yaml").read_text()
    assert problems(profile_schema(deviate=["quantization", "kv-cache-dtype"]), baseline) == []
    assert len(problems(profile_schema(), baseline)) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fp8_e4m3", "auto"),
        ("1024", "256"),
        ("image: 3", "image: 4"),
        ("  audio: 0\n", ""),
        ("quantization: compressed-tensors\n", ""),
        ("max-num-seqs", "max-num-sequences"),
        ("quantization:", "port: 8000\nquantization:"),
        ("quantization:", "seed: x\nquantization:"),
        ("quantization:", "dtype: bf16\nquantization:"),
        ("quantization:", "gpu-memory-utilization: 1.1\nquantization:"),
        ("quantization:", "max-model-len: 0\nquantization:"),
        ("quantization:", "max-model-len: 2.5K\nquantization:"),
        ("quantization:", "tensor-parallel-size: 2\nquantization:"),
        ("quantization:", "speculative-config: [1]\nquantization:"),
        ("quantization:", "lora-target-modules: []\nquantization:"),
        ("quantization:", "enforce-eager: 1\nquantization:"),
    ],
)
def test_refuses_what_load_profile_refuses(smallest: str, old: str, new: str) -> None:
    """The schema rejects the same mistakes."""
    assert problems(profile_schema(), smallest) == []
    assert len(problems(profile_schema(), smallest.replace(old, new))) in (1, 2)


def test_deviating_limits_are_still_limits(smallest: str) -> None:
    """Limits that may deviate must still be counts of known modalities."""
    schema = profile_schema(deviate=["limit-mm-per-prompt"])
    assert problems(schema, smallest.replace("image: 3", "image: 4")) == []
    assert problems(schema, smallest.replace("image: 3", "image: -4"))
    assert problems(schema, smallest.replace("image: 3", "pictures: 4"))


def problems(schema: dict[str, Any], text: str) -> list[str]:
    """Return jsonschema's errors for a YAML text."""
    return [error.message for error in Draft202012Validator(schema).iter_errors(yaml.safe_load(text))]
