"""Gemma 4's image tower: several images in one pass, and compiled layers.

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
"""How many images share a pass. More gain little, and each takes 45 MiB (gemma-4-E4B), 55 if nothing is compiled."""
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
            tower = model.vision_tower
            look_up_positions(tower)
            on_gpu = tower.patch_embedder.position_embedding_table.is_cuda
            if on_gpu and not worker.vllm_config.model_config.enforce_eager:
                compile_layers(tower)
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


def look_up_positions(tower: Any) -> None:
    """Let the tower of transformers look its position embeddings up."""
    embedder = tower.patch_embedder
    embedder._position_embeddings = MethodType(position_embeddings, embedder)  # noqa: SLF001


def position_embeddings(embedder: Any, positions: Any, padding: Any) -> Any:
    """Return the sum of each patch's two embeddings, for its column and its row; zero for padding.

    transformers multiplies the tables by one-hot vectors of 10,240 numbers: the same numbers, and 400 MiB an image.
    """
    columns, rows = positions.clamp(min=0).unbind(-1)
    table = embedder.position_embedding_table
    torch: Any = importlib.import_module("torch")
    return torch.where(padding.unsqueeze(-1), 0.0, table[0][columns] + table[1][rows])


def compile_layers(tower: Any) -> None:
    """Let PyTorch compile what the tower's layers do before and after attention, where each patch is by itself.

    All layers share the two results, for any number of images and patches: requests wait for no compiler.
    """
    torch: Any = importlib.import_module("torch")
    parts = [torch.compile(part, fullgraph=True) for part in (before_attention, after_attention)]
    for each in tower.encoder.layers:
        each.forward = partial(run_layer, each, *parts)


def run_layer(
    layer: Any, before: Any, after: Any, hidden: Any, position_embeddings: Any, attention_mask: Any, **others: Any
) -> Any:
    """Return what the layer of transformers returns for `hidden`, (images, patches, size)."""
    attend: Any = importlib.import_module("transformers.integrations.sdpa_attention").sdpa_attention_forward
    images = hidden.shape[:2]
    rows, *turns, places = (in_a_row(each) for each in (hidden, *position_embeddings, others["position_ids"]))
    rotate: Any = importlib.import_module(type(layer).__module__).apply_multidimensional_rope
    attention, heads = layer.self_attn, before(layer, rotate, rows, turns, places)
    heads = (each.unflatten(1, images).squeeze(0).transpose(1, 2) for each in heads)
    attended, _ = attend(attention, *heads, attention_mask, scaling=attention.scaling)
    return after(layer, in_a_row(attended.flatten(2)), rows).view(hidden.shape)


def in_a_row(patches: Any) -> Any:
    """Return the patches of all images as those of one, whose number the compiler leaves open."""
    row = patches.reshape(1, -1, patches.shape[-1])
    importlib.import_module("torch._dynamo").mark_dynamic(row, 1)
    return row


def before_attention(layer: Any, rotate: Any, rows: Any, turns: Any, places: Any) -> Any:
    """Return queries, keys and values: (1, patches, heads, size of a head) each."""
    attention, rows = layer.self_attn, layer.input_layernorm(rows)
    shape = (*rows.shape[:2], -1, attention.head_dim)
    queries = attention.q_norm(attention.q_proj(rows).view(shape))
    keys = attention.k_norm(attention.k_proj(rows).view(shape))
    values = attention.v_norm(attention.v_proj(rows).view(shape))
    return rotate(queries, *turns, places), rotate(keys, *turns, places), values


def after_attention(layer: Any, attended: Any, rows: Any) -> Any:
    """Return the layer's output from what attention found and from the layer's input."""
    rows = rows + layer.post_attention_layernorm(layer.self_attn.o_proj(attended))
    return rows + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(rows)))
