"""Compare a compressed checkpoint with its base, matrix by matrix: one program, run by a Python with torch.

    PYTHON -P verify_program.py OUT BASE [--texts ROWS.jsonl] [--samples N] [--device cpu|cuda]

Reports on standard output, each line MARK and a JSON object: {"matrix": NAME, ...figures} for each linear layer of the
decoder, {"tensors": {...}} about everything else, {"outputs": {NAME: [error, error of rounding]}} with texts. It judges
nothing; `servekit.recipe.verdict` does.
"""

import argparse
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

MARK = "servekit-recipe "
LAYER = re.compile(r".*\blanguage_model\.layers\.\d+\..+(?=\.weight$)")
MASK = "pruning-mask.zip"
INT4_MAX = 7.5
"""A symmetric scale spreads a group's largest value over half of the 15 steps of int4."""
SMALLEST = 0.02
"""Share of a matrix's smallest weights whose fate tells whether it was pruned, if there is no mask."""


class Checkpoint:
    """The tensors of a folder, by name, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.shards = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        self.where = {name: shard for shard in self.shards for name in shard.keys()}  # noqa: SIM118 - not a dictionary

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.where[name].get_tensor(name)

    def __contains__(self, name: str) -> bool:
        return name in self.where


def main() -> None:
    """Report every figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--max-seq-len", type=int, default=256)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    out, base = Checkpoint(options.out), Checkpoint(options.base)
    masks = zipfile.ZipFile(options.out / MASK) if (options.out / MASK).exists() else None
    packed = {name.removesuffix(".weight_packed") for name in out.where if name.endswith(".weight_packed")}
    for module in sorted(packed):
        report(matrix=module, **figures(module, out, base, masks))
    report(tensors=compare_others(out, base, packed))
    report(sha256={file.name: sha256(file) for file in sorted(options.out.iterdir()) if file.is_file()})
    if options.texts:
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        device = automatic if options.device == "auto" else options.device
        report(outputs=measure_outputs(options, out, packed, device))


def figures(module: str, out: Checkpoint, base: Checkpoint, masks: zipfile.ZipFile | None) -> dict[str, Any]:
    """Return what one packed matrix says of itself, and beside the base's."""
    codes, scale = codes_of(module, out), out[f"{module}.weight_scale"]
    found: dict[str, Any] = {
        "elements": codes.numel(),
        "zeros": share(codes == 0),
        "groups": scale.numel(),
        "bad_scales": int((~torch.isfinite(scale) | (scale <= 0)).sum()),
    }
    if f"{module}.weight" not in base:
        return found
    weight = base[f"{module}.weight"].float()
    made, rounded = dequantize(codes, scale), nearest(weight, scale)
    expected = weight.reshape(*scale.shape, -1).abs().amax(-1) / INT4_MAX
    ratio = scale.float() / expected.clamp_min(1e-12)
    whole = weight.square().sum()
    errors = (made - weight).square().reshape(*scale.shape, -1).sum(-1)
    smallest = weight.abs() <= weight.abs().flatten().kthvalue(max(1, int(SMALLEST * weight.numel()))).values
    found |= {
        "scale_ratio": [tidy(ratio.min()), tidy(ratio.median()), tidy(ratio.max())],
        "error": tidy(errors.sum() / whole),
        "error_of_rounding": tidy((dequantize(rounded, scale) - weight).square().sum() / whole),
        "worst_group": tidy(errors.max() / (whole / scale.numel())),
        "moved": share(codes != rounded),
        "smallest_zero": share(codes[smallest] == 0),
    }
    if masks and module in masks.namelist():
        bits = torch.frombuffer(bytearray(masks.read(module)), dtype=torch.uint8)
        mask = ((bits.unsqueeze(-1) >> torch.arange(7, -1, -1)) & 1).flatten()[: codes.numel()].bool()
        found |= {"pruned": share(mask), "pruned_lost": int((codes.flatten()[mask] != 0).sum())}
    return found


def compare_others(out: Checkpoint, base: Checkpoint, packed: set[str]) -> dict[str, list[str]]:
    """Return the names of tensors that were changed, are missing, or were added; and those that are the base's."""
    found: dict[str, list[str]] = {"same": [], "changed": [], "missing": [], "added": [], "plain": []}
    own = {f"{module}.{part}" for module in packed for part in ("weight_packed", "weight_scale", "weight_shape")}
    for name in sorted(base.where):
        module = name.removesuffix(".weight")
        if module in packed and name.endswith(".weight"):
            continue
        kind = "missing" if name not in out else "same" if same(out[name], base[name]) else "changed"
        found[kind].append(name)
        if kind != "missing" and LAYER.match(name) and base[name].dim() == 2:  # noqa: PLR2004 - a matrix
            found["plain"].append(name)
    found["added"] = sorted(name for name in out.where if name not in own and name not in base)
    return found


def measure_outputs(options: argparse.Namespace, out: Checkpoint, packed: set[str], device: str) -> dict[str, Any]:
    """Run texts through the base, and compare each matrix's output with what OUT's weights make of the same inputs.

    Returns squared errors, as shares of the output: OUT's, and that of the base's weights rounded to OUT's scales.
    """
    from transformers import AutoTokenizer, Gemma4ForConditionalGeneration

    model = Gemma4ForConditionalGeneration.from_pretrained(options.base, dtype="auto").eval().to(device)
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def compare(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            codes, scale = codes_of(name, out).to(device), out[f"{name}.weight_scale"].to(device)
            weight, x = module.weight.float(), inputs[0].flatten(0, -2).float()
            differences = (dequantize(codes, scale) - weight, dequantize(nearest(weight, scale), scale) - weight)
            errors = [(x @ difference.T).square().sum() for difference in differences]
            found = torch.stack([*errors, output.float().square().sum()])
            sums[name] = sums.get(name, 0) + found.cpu()

        return compare

    for name, module in model.named_modules():
        if name in packed and isinstance(module, torch.nn.Linear):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        for ids in tokenized(options, AutoTokenizer.from_pretrained(options.base)):
            tokens = torch.tensor([ids], device=device)
            zeros, ones = torch.zeros_like(tokens), torch.ones_like(tokens)
            model.model(input_ids=tokens, attention_mask=ones, mm_token_type_ids=zeros, use_cache=False)
    return {name: [tidy(mine / whole), tidy(rounding / whole)] for name, (mine, rounding, whole) in sums.items()}


def tokenized(options: argparse.Namespace, tokenizer: Any) -> Iterator[list[int]]:
    """Yield the last rows of the file as tokens: the calibration may have taken the others."""
    lines = [line for line in options.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    for line in lines[-options.samples :]:
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        yield tokenizer(text, truncation=True, max_length=options.max_seq_len, add_special_tokens=False)["input_ids"]


def codes_of(module: str, stored: Checkpoint) -> torch.Tensor:
    """Return the int4 values of a packed matrix, -8 to 7: eight in a word, the first in its lowest bits."""
    packed, (rows, columns) = stored[f"{module}.weight_packed"], stored[f"{module}.weight_shape"].tolist()
    codes = ((packed.unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15).flatten(-2) - 8
    return codes[:rows, :columns].to(torch.int8)


def dequantize(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the weights of int4 values."""
    return (codes.reshape(*scale.shape, -1).float() * scale.float().unsqueeze(-1)).reshape(codes.shape)


def nearest(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the int4 values nearest to a weight."""
    groups = weight.reshape(*scale.shape, -1) / scale.float().unsqueeze(-1)
    return groups.round().clamp(-8, 7).to(torch.int8).reshape(weight.shape)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are the same bit for bit: NaN too, and 0 is not -0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)))


def sha256(path: Path) -> str:
    """Return a file's hash."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def share(where: torch.Tensor) -> float:
    """Return the share of true elements."""
    return float(f"{where.float().mean().item():.6f}")


def tidy(value: torch.Tensor) -> float:
    """Return a number with four digits."""
    return float(f"{value.item():.4g}")


def report(**values: Any) -> None:
    """Print one line for servekit."""
    sys.stdout.write(f"{MARK}{json.dumps(values)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
