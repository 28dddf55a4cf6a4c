"""Gemma 4's image tower: several images in one pass, with half the kernels.

vLLM 0.20.2 runs the tower of transformers once for each image (`_process_image_input` in
`model_executor/models/gemma4_mm.py`): 1,821 kernels of a few microseconds each, which one thread of EngineCore launches
one by one, between the steps of the text model. Every image has the same number of places for patches, so the same
launches serve several images; places that none of them uses are left out.
"""

import importlib
from functools import partial, wraps
from types import MethodType
from typing import Any

IMAGES = 4
"""How many images share a pass. More gain little, and each takes 55 MiB of activations (gemma-4-E4B)."""
PLACES = 10_080
"""How many places for patches a pass has at most: those of four images of 280 tokens. Images of different sizes need a
mask for attention, which grows with the square of the places, and the start rehearses images of one size only."""
MODEL = "Gemma4ForConditionalGeneration"


def images_together(load_model: Any) -> Any:
    """Return `load_model` of vLLM's worker, which then changes the loaded model."""

    @wraps(load_model)
    def load(worker: Any, *arguments: Any, **named: Any) -> Any:
        result = load_model(worker, *arguments, **named)
        model = worker.get_model()
        if type(model).__name__ == MODEL:
            batched: Any = importlib.import_module("vllm.multimodal.inputs").MultiModalBatchedField
            batched.reduce_data = straight_to_gpu(batched.reduce_data)
            model._process_image_input = MethodType(process_images, model)  # noqa: SLF001
            launch_less(model.vision_tower)
        return result

    return load


def straight_to_gpu(reduce_data: Any) -> Any:
    """Return `reduce_data` of vLLM's batched fields, which then copies each image to its place on the GPU.

    vLLM joins them in pinned memory first: a copy more, and memory that CUDA pins anew for each new size.
    """

    @wraps(reduce_data)
    def reduce(field: Any, elements: Any, *, device: Any = None, pin_memory: bool = False) -> Any:
        torch: Any = importlib.import_module("torch")
        parts = [each.data for each in elements]
        alike = all(isinstance(part, torch.Tensor) and part.shape == parts[0].shape for part in parts)
        if not (pin_memory and alike) or field.keep_on_cpu or device is None:
            return reduce_data(field, elements, device=device, pin_memory=pin_memory)
        together = torch.empty((len(parts), *parts[0].shape), dtype=parts[0].dtype, device=device)
        for place, part in zip(together, parts, strict=True):
            place.copy_(part, non_blocking=True)
        return together

    return reduce


def process_images(model: Any, images: Any) -> list[Any]:
    """Return the embeddings of each image, as vLLM's own method of the model does."""
    pixels, positions = images["pixel_values"], images["pixel_position_ids"]
    area = model.config.vision_config.pooling_kernel_size**2
    lengths = ((positions[..., 0] >= 0).sum(-1) // area).tolist()
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    embedded: dict[int, Any] = {}
    together = max(1, min(IMAGES, PLACES // pixels.shape[1]))
    for first in range(0, len(lengths), together):
        group = by_length[first : first + together]
        used = area * lengths[group[-1]]  # the places after them are padding in all of the group
        rows = model.vision_tower(pixels[group, :used], positions[group, :used]).last_hidden_state
        rows = rows.to(model.embed_vision.embedding_projection.weight.dtype)
        rows = model.embed_vision(inputs_embeds=rows.unsqueeze(0)).squeeze(0)
        embedded |= zip(group, rows.split([lengths[index] for index in group]), strict=True)
    return [embedded[index] for index in range(len(lengths))]


def position_embeddings(embedder: Any, positions: Any, padding: Any) -> Any:
    """Return the sum of each patch's two embeddings, for its column and its row; zero for padding.

    transformers multiplies the tables by one-hot vectors of 10,240 numbers: the same numbers, and 400 MiB an image.
    """
    columns, rows = positions.clamp(min=0).unbind(-1)
    table = embedder.position_embedding_table
    torch: Any = importlib.import_module("torch")
    return torch.where(padding.unsqueeze(-1), 0.0, table[0][columns] + table[1][rows])


def launch_less(tower: Any) -> None:
    """Let the tower of transformers compute the same with fewer kernels."""
    embedder = tower.patch_embedder
    embedder._position_embeddings = MethodType(position_embeddings, embedder)  # noqa: SLF001
    for each in tower.modules():
        if type(each).__name__ == "Gemma4RMSNorm":
            each.forward = MethodType(norm, each)
        elif getattr(each, "use_clipped_linears", False):
            bounds = (each.input_min, each.input_max, each.output_min, each.output_max)
            each.forward = partial(clipped, each.linear, *(bound.item() for bound in bounds))
    transformers: Any = importlib.import_module(type(tower).__module__)
    transformers.apply_multidimensional_rope = rotate


def norm(layer: Any, rows: Any) -> Any:
    """Return the RMS norm in one kernel; transformers takes eight, and goes through memory in FP32 for each."""
    functional: Any = importlib.import_module("torch.nn.functional")
    return functional.rms_norm(rows, rows.shape[-1:], layer.weight if layer.with_scale else None, layer.eps)


def clipped(linear: Any, input_min: float, input_max: float, output_min: float, output_max: float, rows: Any) -> Any:
    """Return a linear layer's clipped output; transformers clips by tensors, which takes a GPU longer than numbers."""
    return linear(rows.clamp(input_min, input_max)).clamp_(output_min, output_max)


def rotate(heads: Any, cos: Any, sin: Any, positions: Any, unsqueeze_dim: int = 2) -> Any:
    """Rotate by column and row at once; transformers does one after the other, with the same numbers."""
    torch: Any = importlib.import_module("torch")
    first, second = heads.unflatten(-1, (positions.shape[-1], 2, -1)).unbind(-2)
    turned = torch.stack((-second, first), -2).flatten(-3)
    return heads * cos.unsqueeze(unsqueeze_dim) + turned * sin.unsqueeze(unsqueeze_dim)
