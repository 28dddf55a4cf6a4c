"""The size of the weights on the GPU, from the headers.

vLLM 0.20.2 keeps a tower only if one of its modalities is allowed (models/interfaces.py, _mark_tower_model). It ties
lm_head to the embedding, allocates the projections of KV-shared layers even if the checkpoint lacks them, and casts
floating-point tensors to the model's dtype. Beside the tensors it allocates one buffer of per-layer embeddings and one
table of rotary angles per head size (models/gemma4_mm.py, rotary_embedding/base.py).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from servekit.preflight.checkpoint.contents.layers import Linear, expected_modules
from servekit.preflight.checkpoint.naming import (
    AUDIO,
    AUDIO_PROJECTOR,
    LM_HEAD,
    TEXT,
    VISION,
    VISION_PROJECTOR,
    part_of,
)
from servekit.preflight.checkpoint.quantization.scheme import WeightScheme
from servekit.preflight.checkpoint.shard_header import FLOAT_DTYPES, Tensor
from servekit.preflight.checkpoint.text_config import TextConfig


@dataclass(frozen=True)
class WeightSizes:
    """Bytes on the GPU by their use."""

    language_bytes: int
    layers_bytes: int
    """The part of `language_bytes` that is in decoder layers."""
    embedding_bytes: int
    per_layer_bytes: int
    """The part of `embedding_bytes` that is the table of per-layer embeddings."""
    vision_bytes: int
    audio_bytes: int
    buffer_bytes: int

    @property
    def total_bytes(self) -> int:
        """The memory that vLLM logs for loading the model."""
        return self.language_bytes + self.embedding_bytes + self.vision_bytes + self.audio_bytes + self.buffer_bytes


def weights_on_gpu(
    tensors: Iterable[Tensor],
    text: TextConfig,
    scheme: WeightScheme | None,
    *,
    dtype_bytes: int,
    limits: Mapping[str, int],
    max_num_batched_tokens: int,
) -> WeightSizes:
    """Sizes after loading; `limits` are the items per prompt of image, audio and video."""
    sizes: Counter[str] = Counter()
    stored = set()
    for tensor in tensors:
        part, name = part_of(tensor.name)
        if part == LM_HEAD:
            stored.add(f"{part}.{name}")
        if part == TEXT:
            stored.add(name)
            part = "embedding" if name.startswith("embed_tokens") else part
        size = tensor.elements * dtype_bytes if tensor.dtype in FLOAT_DTYPES else tensor.size_bytes
        sizes[part] += size
        sizes["per_layer"] += size if part == "embedding" and name.startswith("embed_tokens_per_layer") else 0
        sizes["layers"] += size if part == TEXT and name.startswith("layers.") else 0
    for linear in expected_modules(text)[0]:
        if not {f"{linear.module}.weight", f"{linear.module}.weight_packed"} & stored:
            size = _linear_bytes(linear, scheme, dtype_bytes)
            sizes[LM_HEAD if linear.module == LM_HEAD else TEXT] += size
            sizes["layers"] += size if linear.module.startswith("layers.") else 0
    return WeightSizes(
        language_bytes=sizes[TEXT],
        layers_bytes=sizes["layers"],
        embedding_bytes=sizes["embedding"] + (0 if text.tie_word_embeddings else sizes[LM_HEAD]),
        per_layer_bytes=sizes["per_layer"],
        vision_bytes=sizes[VISION] + sizes[VISION_PROJECTOR] if limits["image"] or limits["video"] else 0,
        audio_bytes=sizes[AUDIO] + sizes[AUDIO_PROJECTOR] if limits["audio"] else 0,
        buffer_bytes=_buffer_bytes(text, dtype_bytes, max_num_batched_tokens),
    )


def _linear_bytes(linear: Linear, scheme: WeightScheme | None, dtype_bytes: int) -> int:
    weights = linear.outputs * linear.inputs
    args = scheme.args_of(linear.module) if scheme else None
    if args is None:
        return weights * dtype_bytes
    return weights * args.num_bits // 8 + linear.outputs * args.groups(linear.inputs) * dtype_bytes


def _buffer_bytes(text: TextConfig, dtype_bytes: int, max_num_batched_tokens: int) -> int:
    per_layer = max_num_batched_tokens * text.num_hidden_layers * text.hidden_size_per_layer_input
    heads = {(text.is_full(layer), text.head_size(layer)) for layer in range(text.num_hidden_layers)}
    rotary = text.max_position_embeddings * sum(size for _, size in heads)
    return (per_layer + rotary) * dtype_bytes
