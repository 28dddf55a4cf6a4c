"""The model card: what was done to a checkpoint, its measured sizes, and the results of `servekit report`."""

from pathlib import Path
from typing import Any, Final

import yaml

from servekit.errors import ConfigurationError, Finding

RECORD: Final = "quantization.yaml"
_STEP: Final = {
    "prune": "Pruning | SparseGPT, {share} unstructured: gate_proj, up_proj and down_proj of each decoder layer",
    "quantize": "Quantization | GPTQ, W4A16: int4, groups of 128, symmetric, static activation ordering; the linear "
    "layers of each decoder layer",
}


def write_card(folder: Path, results: str = "") -> None:
    """Write the README.md of a checkpoint that `servekit quantize` made; `results` is a table in Markdown.

    Raises ConfigurationError if the folder has no record of what was done.
    """
    (folder / "README.md").write_text(_card(folder.name, read_record(folder), results), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `servekit quantize` wrote about a checkpoint. Raises ConfigurationError."""
    try:
        record = yaml.safe_load((folder / RECORD).read_text(encoding="utf-8"))
        assert isinstance(record, dict)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AssertionError):
        remedy = "name a folder that `servekit quantize` made"
        raise ConfigurationError([Finding("no readable record", file=str(folder / RECORD), remedy=remedy)]) from None
    return record


def _card(name: str, record: dict[str, Any], results: str) -> str:
    base, data, steps = record["base"], record["calibration"], record["steps"]
    origin = data.get("file") or f"{data['dataset']}, split {data['split']}"
    weights = sum(size for file, size in record["bytes"].items() if file.endswith(".safetensors"))
    before = sum(base["sizes"].values())
    steps_done = "\n".join(f"| {_STEP[step].format(share=_share(layers))} |" for step, layers in steps.items())
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    revision = f", commit {base['revision']}" if base["revision"] else ""
    peak = ", ".join(f"{what.removesuffix('_gb')} {amount} GB" for what, amount in record["peak"].items())
    licence = base["license"] and f"license: {base['license']}\n"
    table = "\n".join(
        f"| {what} | {value} |"
        for what, value in (
            ("weights", f"{weights / 1e9:.3f} GB, of {before / 1e9:.3f} GB ({weights / before - 1:+.1%})"),
            ("calibration", f"{data['samples']} samples of {origin}, {record['tokens']} tokens"),
            ("time", f"{record['seconds']} s on {record['device']}"),
            ("peak memory", peak),
            ("made with", versions),
        )
    )
    return f"""---
base_model: {base["name"]}
{licence}---
# {name}

{base["name"]}{revision}, compressed by `servekit quantize`. The licence is the base's
({base["license"] or "its folder does not name one"}); its notices apply to this checkpoint too.

| Step | What |
|---|---|
{steps_done}

Vision tower, audio tower, projectors, embeddings, `per_layer_model_projection` and `lm_head` are the base's bit for
bit. Serve with `kv-cache-dtype: fp8_e4m3`; the checkpoint has no KV scales.

| Measured | |
|---|---|
{table}

`recipe.yaml` and `recipe.json` have the recipe, `quantization.yaml` has each layer's figures, and `pruning-mask.zip`
tells which weights were pruned. `servekit verify` reads them.
{results and f"{chr(10)}## Results{chr(10)}{chr(10)}{results}{chr(10)}"}"""


def _share(layers: dict[str, Any]) -> str:
    matrices = [matrix for layer in layers.values() for matrix in layer["matrices"].values()]
    return f"{sum(each['zeros'] for each in matrices) / sum(each['elements'] for each in matrices):.2%}"
