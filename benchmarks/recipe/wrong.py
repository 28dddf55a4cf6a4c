"""The recipe with one step left out or done wrongly: a program for .venv-recipe.

PYTHON wrong.py RECIPE_FOLDER MISTAKE [arguments of compress.py]
"""

import json
import sys
from pathlib import Path
from typing import Any


def rounding() -> None:
    """Round to the nearest values, where GPTQ would move weights to make up for the errors of others."""
    import torch
    from llmcompressor.modifiers.gptq import base

    original = base.quantize_weight

    def quantize(hessian: Any, **arguments: Any) -> Any:
        return original(hessian=torch.eye(len(hessian), device=hessian.device), **arguments)

    base.quantize_weight = quantize


def sharing() -> None:
    """Give the layers at the end K and V of their own, from projections that they store and do not use."""
    import layers
    import torch
    from safetensors import safe_open

    original = layers.Calibration.forward
    base = Path(sys.argv[1])

    def forward(self: Any, index: int, sample: Any) -> Any:
        attention = self.layers[index].self_attn
        if attention.is_kv_shared_layer:
            length = sample.hidden.shape[1]
            with safe_open(base / "model.safetensors", "pt") as stored:
                root = f"model.language_model.layers.{index}.self_attn"
                pair = [
                    (sample.hidden @ stored.get_tensor(f"{root}.{name}_proj.weight").T)
                    .view(1, length, -1, attention.head_dim)
                    .transpose(1, 2)
                    for name in ("k", "v")
                ]
            sample.shared[attention.layer_type] = tuple(each / each.float().square().mean().sqrt() for each in pair)
            sample.shared = {kind: tuple(t.to(torch.bfloat16) for t in kv) for kind, kv in sample.shared.items()}
        return original(self, index, sample)

    layers.Calibration.forward = forward
    layers.check_sharing = lambda *_: None  # it would notice


def tower() -> None:
    """Quantize a matrix of the vision tower too."""
    import torch
    import writing
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from passes import nearest

    original = writing._shard

    def shard(*arguments: Any) -> Any:
        tensors = original(*arguments)
        name = "model.vision_tower.encoder.layers.0.mlp.down_proj.linear"
        weight = tensors.pop(f"{name}.weight")
        scale = weight.reshape(len(weight), -1, 128).abs().amax(-1) / 7.5
        codes = nearest(weight, scale)
        packed = {"packed": pack_to_int32(codes, 4), "scale": scale, "shape": torch.tensor(weight.shape)}
        return tensors | {f"{name}.weight_{part}": tensor for part, tensor in packed.items()}

    writing._shard = shard


def garbage() -> None:
    """Calibrate on one character again and again."""
    import compress

    row = {"messages": [{"role": "user", "content": "~" * 400}]}
    original = compress.read_rows

    def rows(calibration: str, samples: int, seed: int) -> Any:
        _, origin = original(calibration, samples, seed)
        return json.loads(json.dumps([row] * samples)), origin

    compress.read_rows = rows


MISTAKES = {"rounding": rounding, "sharing": sharing, "tower": tower, "garbage": garbage}

if __name__ == "__main__":
    folder, mistake, *rest = sys.argv[1:]
    sys.path.insert(0, folder)
    sys.argv = [str(Path(folder) / "compress.py"), *rest]
    MISTAKES[mistake]()
    import compress

    compress.main()
