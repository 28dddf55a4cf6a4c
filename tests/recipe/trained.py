"""Give a checkpoint the look of trained weights: a program for a Python with torch.

    PYTHON trained.py BASE OUT

Random matrices hide mistakes: every direction of their inputs is alike, so rounding to the nearest is almost the best
that can be done. Here each matrix of the decoder has a spectrum that falls as 1/n over a little noise, and a few of
the stream's channels are twenty times as loud as the others, as in trained models.
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LOUD_CHANNELS = 3
LOUD = 20.0
NOISE = 0.3


def main(base: Path, out: Path) -> None:
    """Copy a checkpoint with other matrices in the layers of its language model."""
    shutil.copytree(base, out)
    random = torch.Generator().manual_seed(7)
    tensors = load_file(out / "model.safetensors")
    hidden = tensors["model.language_model.norm.weight"].numel()
    loud = torch.randperm(hidden, generator=random)[:LOUD_CHANNELS]
    for name, tensor in tensors.items():
        if ".language_model.layers." not in name:
            continue
        if tensor.dim() == 2:
            tensors[name] = trained(tensor, random)
        elif name.endswith(("input_layernorm.weight", "pre_feedforward_layernorm.weight")):
            tensor[loud] = LOUD
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def trained(matrix: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Return a matrix of the same shape, type and size with a falling spectrum."""
    rows, columns = matrix.shape
    left, right = (torch.linalg.qr(torch.randn(n, min(rows, columns), generator=random))[0] for n in (rows, columns))
    spectrum = 1 / torch.arange(1, min(rows, columns) + 1)
    low_rank = (left * spectrum) @ right.T
    made = low_rank / low_rank.norm() + NOISE * torch.randn(rows, columns, generator=random) / (rows * columns) ** 0.5
    return (made * matrix.float().norm() / made.norm()).to(matrix.dtype)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
