"""`servekit verify`: measures a compressed checkpoint beside its base, and judges it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servekit.errors import ConfigurationError, Finding, in_order
from servekit.preflight.checkpoint.checkpoint_facts import inspect_checkpoint
from servekit.profile import EngineArguments
from servekit.recipe.card import RECORD, read_record
from servekit.recipe.program import INSTALL, need_file, run_program
from servekit.recipe.verdict import HEAD, Expected, Measured, judge, layer_rows


@dataclass(frozen=True)
class Verification:
    """The figures of a checkpoint, and what is wrong with it."""

    measured: Measured
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return any(finding.severity == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        return {**vars(self.measured), "findings": [finding.as_dict() for finding in self.findings]}

    def table(self) -> str:
        """Return the figures of each layer, and how many tensors are the base's."""
        rows = [list(HEAD), *layer_rows(self.measured)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        same = len(self.measured.tensors.get("same", []))
        return "\n".join([*lines, f"{same} other tensors are the base's bit for bit"])


def verify(
    out: Path,
    base: Path,
    *,
    sparsity: float,
    texts: Path | None,
    samples: int,
    device: str,
    python: Path,
    arguments: EngineArguments,
) -> Verification:
    """Measure and judge, and check OUT as `servekit check` does.

    `sparsity` is what the MLP should have; `texts` are rows with messages that OUT was not calibrated on.

    Raises ConfigurationError if a folder or the environment is not usable.
    """
    findings = [
        *need_file(python, "no Python with torch and transformers", INSTALL),
        *need_file(out / "config.json", "OUT is not a checkpoint", "name its folder"),
        *need_file(base / "config.json", "--base is not a checkpoint", "name its folder"),
        *(need_file(texts, "no such file", "name a JSONL file with `messages`: --texts") if texts else []),
    ]
    if findings:
        raise ConfigurationError(findings)
    scheme, first_shared = read_scheme(out), _first_shared(base)
    record = read_record(out) if (out / RECORD).exists() else {}
    measured = Measured()
    words: list[str | Path] = [
        python,
        "-P",
        Path(__file__).with_name("verify_program.py"),
        out,
        base,
        "--device",
        device,
    ]
    words += ["--texts", texts, "--samples", str(samples)] if texts else []

    run_program(words, measured.add)
    _, checked = inspect_checkpoint(out, arguments=arguments)
    return Verification(
        measured, in_order((*judge(measured, Expected(sparsity, first_shared, record, scheme)), *checked))
    )


def read_scheme(out: Path) -> dict[str, Any]:
    """Return how the weights are quantized. Raises ConfigurationError if not as packed int4."""
    try:
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        (group,) = config["quantization_config"]["config_groups"].values()
        weights: dict[str, Any] = {"type": "int", "symmetric": True, **group["weights"]}  # compressed-tensors' defaults
        if weights.get("actorder") == "weight":
            weights["actorder"] = "static"  # compressed-tensors has two names for it
        packed = (weights["num_bits"], weights["symmetric"]) == (4, True)
    except (ValueError, LookupError, TypeError, AttributeError):
        packed = False
    if not packed:
        remedy = "name a checkpoint in compressed-tensors format with one group of symmetric 4-bit weights"
        raise ConfigurationError([Finding("is not W4A16", file=str(out / "config.json"), remedy=remedy)])
    return weights


def _first_shared(base: Path) -> int:
    """Return the first layer that uses the K and V of an earlier one. Raises ConfigurationError if not a Gemma 4."""
    path = base / "config.json"
    try:
        text = json.loads(path.read_text(encoding="utf-8"))["text_config"]
        return int(text["num_hidden_layers"] - text.get("num_kv_shared_layers", 0))
    except (ValueError, LookupError, TypeError, AttributeError):
        remedy = "name the folder of a Gemma 4 with a text_config: --base"
        raise ConfigurationError([Finding("is not a Gemma 4's", file=str(path), remedy=remedy)]) from None
