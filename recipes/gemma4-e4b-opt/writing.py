"""Writes the checkpoint: the base's files with the quantized matrices in their place, and what was done beside them.

Everything else is copied from the base's files, not saved by transformers, so it is the base's bit for bit.
"""

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from compressed_tensors.quantization import QuantizationConfig
from passes import BITS, layer_file, mask_file
from safetensors import safe_open
from safetensors.torch import save_file

LAYER = re.compile(r"(.*\blanguage_model\.layers\.(\d+)\.)(.+)\.weight$")
INDEX = "model.safetensors.index.json"
NOT_COPIED = re.compile(r".*\.(safetensors|bin|pt|pth|gguf)|.*\.index\.json|config\.json|README\.md|\..*|servekit-.*")
MASK = "pruning-mask.zip"


def write_checkpoint(
    base: Path, out: Path, work: Path, model: Any, recipe: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write `out` at once: into a folder beside it, which is renamed when it is whole."""
    partial = work / "checkpoint"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file in sorted(base.iterdir()):
        if file.is_file() and not NOT_COPIED.fullmatch(file.name):
            shutil.copyfile(file, partial / file.name)
    unused = _unused(model)
    index: dict[str, str] = {}
    for shard in sorted(base.glob("*.safetensors")):
        tensors = _shard(shard, work, unused)
        save_file(tensors, partial / shard.name, metadata={"format": "pt"})
        (partial / shard.name).chmod(0o644)  # safetensors gives 0600, but the engine may run as another user
        index |= dict.fromkeys(tensors, shard.name)
    if (base / INDEX).exists():
        sizes = sum(file.stat().st_size for file in partial.glob("*.safetensors"))
        _write_json(partial / INDEX, {"metadata": {"total_size": sizes}, "weight_map": index})
    _write_config(base, partial, model)
    masks = [mask_file(work, layer) for layer in range(len(model.model.language_model.layers))]
    if "prune" in facts["steps"]:
        _write_masks(partial / MASK, masks)
    (partial / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    _write_json(partial / "recipe.json", recipe)
    hashes = {file.name: _sha256(file) for file in sorted(partial.iterdir())}
    facts |= {"bytes": {name: (partial / name).stat().st_size for name in hashes}, "sha256": hashes}
    (partial / "quantization.yaml").write_text(yaml.safe_dump(facts, sort_keys=False))
    partial.rename(out)
    shutil.rmtree(work)


def _shard(shard: Path, work: Path, unused: set[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of one of the base's shards, the quantized ones in their new form."""
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(shard, "pt") as stored:
        for name in stored.keys():  # noqa: SIM118 - not a dictionary
            if name in unused:
                continue
            packed = _packed(name, work)
            tensors |= packed or {name: stored.get_tensor(name)}
    return tensors


def _packed(name: str, work: Path) -> dict[str, torch.Tensor]:
    """Return the packed tensors that replace a weight of a decoder layer; none if it is not quantized."""
    if not (found := LAYER.match(name)):
        return {}
    root, layer, module = found.groups()
    with safe_open(layer_file(work, "quantize", int(layer)), "pt") as kept:
        names = [each for each in kept.keys() if each.startswith(f"{module}.")]  # noqa: SIM118 - not a dictionary
        return {f"{root}{each}": kept.get_tensor(each) for each in names}


def _unused(model: Any) -> set[str]:
    """Return the projections that layers with shared K and V do not have, though the base may store them.

    vLLM 0.20.2 has quantized parameters for them, and takes a plain weight for none: KeyError. It does not miss them.
    """
    return {
        f"model.language_model.layers.{layer.layer_idx}.self_attn.{name}.weight"
        for layer in model.model.language_model.layers
        if layer.self_attn.is_kv_shared_layer
        for name in ("k_proj", "v_proj")
    }


def _write_config(base: Path, folder: Path, model: Any) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    made = QuantizationConfig.from_pretrained(model, format="pack-quantized").model_dump(mode="json")
    for group in made["config_groups"].values():
        group["format"] = "pack-quantized"
        assert group["weights"]["num_bits"] == BITS
    config["quantization_config"] = made | {"quant_method": "compressed-tensors", "quantization_status": "compressed"}
    # vLLM 0.20.2 reads the number of an image's tokens here, and not from the processor's configuration.
    if vision := config.get("vision_config"):
        vision.setdefault("default_output_length", config.get("vision_soft_tokens_per_image", 280))
    _write_json(folder / "config.json", config)


def _write_masks(path: Path, files: list[Path]) -> None:
    """Write which weights were pruned: a bit for each, row by row, in a file for each matrix."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for layer, file in enumerate(files):
            with safe_open(file, "pt") as kept:
                for name in sorted(kept.keys()):
                    module = f"model.language_model.layers.{layer}.{name.removesuffix('.weight')}"
                    entry = zipfile.ZipInfo(module)  # dated 1980, so that the same masks give the same bytes
                    archive.writestr(entry, kept.get_tensor(name).numpy().tobytes(), zipfile.ZIP_DEFLATED)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
