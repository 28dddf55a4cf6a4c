"""The recipe's passes: llm-compressor's own modifiers, called after each decoder layer, each layer kept on disk.

A pass that was interrupted continues at the layer it was at: the layers before it are read from the work folder, and
the samples run through them again.
"""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.utils import patch_attr
from layers import Calibration
from llmcompressor.core import LifecycleCallbacks, active_session
from llmcompressor.modifiers.utils.hooks import HooksMixin
from llmcompressor.utils.helpers import DisableQuantization
from safetensors import safe_open
from safetensors.torch import save_file

BITS = 4
MODIFIERS = {"SparseGPTModifier": "prune", "GPTQModifier": "quantize"}


@dataclass
class Pass:
    """One modifier of the recipe on its way through the layers."""

    kind: str
    modifier: Any
    run: Calibration
    work: Path
    report: Callable[..., None]

    def __call__(self) -> dict[str, Any]:
        """Change every layer; return the record of each matrix. Begins where the work folder ends."""
        records: dict[str, Any] = {}
        self.run.rewind()
        LifecycleCallbacks.calibration_epoch_start()
        files = [layer_file(self.work, self.kind, index) for index in range(len(self.run.layers))]
        whole = all(file.exists() for file in files)
        began, computed = time.monotonic(), 0
        for index, (layer, file) in enumerate(zip(self.run.layers, files, strict=True)):
            layer.to(self.run.device)
            if file.exists():
                record = self.restore(layer, file)
            else:
                record = self.change(index, layer, file)
                computed += 1
            if not whole:
                with HooksMixin.disable_hooks():
                    self.run.run(index, keep=True)
            layer.to("cpu")
            records[str(index)] = record
            left = (time.monotonic() - began) / max(computed, 1) * (len(self.run.layers) - index - 1)
            self.report(step=self.kind, layer=index + 1, layers=len(self.run.layers), left_s=round(left))
        LifecycleCallbacks.calibration_epoch_end()
        return records

    def change(self, index: int, layer: torch.nn.Module, file: Path) -> dict[str, Any]:
        """Calibrate and change one layer, and keep the result."""
        began = time.monotonic()
        if self.run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.run.run(index, keep=False)
        inputs = {  # H = 2 X X^T / samples, of each matrix's inputs X
            module: hessian / (self.modifier._num_samples[module] if self.kind == "quantize" else 1)
            for module, hessian in self.modifier._hessians.items()
        }
        before = {module: module.weight.detach().clone() for module in inputs}
        LifecycleCallbacks.sequential_epoch_end([layer])
        names = {module: name for name, module in layer.named_modules()}
        keep = _pruned if self.kind == "prune" else _packed
        tensors, matrices = {}, {}
        for module, hessian in inputs.items():
            stored, record = keep(module, before[module], hessian)
            tensors |= {f"{names[module]}.{name}": tensor.cpu() for name, tensor in stored.items()}
            matrices[names[module]] = record
        record = {"seconds": round(time.monotonic() - began, 2), "matrices": matrices, **peaks(self.run.device)}
        if self.kind == "prune":
            masks = {name: torch.from_numpy(np.packbits((tensor == 0).numpy())) for name, tensor in tensors.items()}
            _save(masks, mask_file(self.work, index))
        _save(tensors, file, record=json.dumps(record))
        return record

    def restore(self, layer: torch.nn.Module, file: Path) -> dict[str, Any]:
        """Put a kept layer into the model; return its record."""
        with safe_open(file, "pt") as kept:
            for name in kept.keys():  # noqa: SIM118 - not a dictionary
                module, _, kind = name.rpartition(".")
                if kind == "weight":
                    weight = kept.get_tensor(name)
                elif kind == "weight_packed":
                    weight = dequantize(unpack(kept.get_tensor(name)), kept.get_tensor(f"{module}.weight_scale"))
                else:
                    continue
                parameter = layer.get_submodule(module).weight
                parameter.data.copy_(weight)
            return dict(json.loads(kept.metadata()["record"]))


def run_recipe(model: Any, recipe: str, run: Calibration, work: Path, report: Callable[..., None]) -> dict[str, Any]:
    """Run every modifier of a recipe, each in a pass of its own; return the records by step, then by layer."""
    session = active_session()
    session.reset()
    session.initialize(model=model, recipe=recipe, start=-1)
    # llm-compressor's events reach every modifier of the recipe, so each pass sees one (as its IndependentPipeline).
    modifiers = list(session.lifecycle.recipe.modifiers)
    unknown = [type(each).__name__ for each in modifiers if type(each).__name__ not in MODIFIERS]
    assert not unknown, f"the recipe has {unknown}, and this script knows {list(MODIFIERS)}"
    records = {}
    with patch_attr(session.lifecycle.recipe, "modifiers", None), DisableQuantization(model):
        for modifier in modifiers:
            session.lifecycle.recipe.modifiers = [modifier]
            kind = MODIFIERS[type(modifier).__name__]
            records[kind] = Pass(kind, modifier, run, work, report)()
    return records


def layer_file(work: Path, kind: str, index: int) -> Path:
    """Return where a changed layer is kept."""
    return work / f"{kind}-{index:03}.safetensors"


def mask_file(work: Path, index: int) -> Path:
    """Return where the pruned places of a layer are kept."""
    return work / f"mask-{index:03}.safetensors"


def kept_seconds(work: Path) -> float:
    """Return how long earlier runs of this job worked on the layers that are kept."""
    seconds = 0.0
    for kind in MODIFIERS.values():
        for file in work.glob(f"{kind}-*.safetensors"):
            with safe_open(file, "pt") as kept:
                seconds += json.loads(kept.metadata()["record"])["seconds"]
    return seconds


def peaks(device: torch.device) -> dict[str, float]:
    """Return the largest amounts of memory used so far, in GB: the process's, and the GPU's since the last reset."""
    host = {"host_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)}
    return host | ({"gpu_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2)} if device.type == "cuda" else {})


def _save(tensors: dict[str, torch.Tensor], file: Path, **metadata: str) -> None:
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    partial.rename(file)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return the int4 values of packed words, -8 to 7."""
    return ((packed.unsqueeze(-1) >> torch.arange(0, 32, BITS, device=packed.device)) & 15).flatten(-2) - 8


def dequantize(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the weights that the engine computes with."""
    groups = codes.reshape(*scale.shape, -1).to(scale.dtype)
    return (groups * scale.unsqueeze(-1)).reshape(codes.shape)


def nearest(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the int4 values nearest to a weight."""
    groups = weight.float().reshape(*scale.shape, -1) / scale.float().unsqueeze(-1)
    return groups.round().clamp(-8, 7).to(torch.int8).reshape(weight.shape)


def _pruned(module: Any, before: torch.Tensor, hessian: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    weight = module.weight.detach()
    zeros = int((weight == 0).sum())
    error = _output_error(weight, before, hessian)
    return {"weight": weight}, {"elements": weight.numel(), "zeros": zeros, "error": error}


def _packed(module: Any, before: torch.Tensor, hessian: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Pack a quantized matrix, and replace it by what the engine will compute with: scales are stored in BF16."""
    weight, scale = module.weight.detach(), module.weight_scale.detach()
    codes, rounded = nearest(weight, scale), nearest(before, scale)
    module.weight.data.copy_(dequantize(codes, scale))
    record = {
        "elements": codes.numel(),
        "zeros": int((codes == 0).sum()),
        "zeros_lost": int(((before == 0) & (codes != 0)).sum()),
        "error": _output_error(module.weight.detach(), before, hessian),
        "error_of_rounding": _output_error(dequantize(rounded, scale), before, hessian),
    }
    shape = torch.tensor(codes.shape)
    return {"weight_packed": pack_to_int32(codes, BITS), "weight_scale": scale, "weight_shape": shape}, record


def _output_error(after: torch.Tensor, before: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return the error of the matrix's output on the calibration data, as a share of the output: of squares."""
    change, whole = (after - before).float(), before.float()
    share = ((change @ hessian) * change).sum() / ((whole @ hessian) * whole).sum().clamp_min(1e-30)
    return float(f"{share.item():.4g}")
