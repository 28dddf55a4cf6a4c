"""The dimensions of a Gemma 4 model of the E4B kind, and the sizes built here.

Shape of the family: every n-th text layer attends to everything, with heads twice as wide; the others see a
window. The last layers keep no keys and values, but use those of the last earlier layer of their kind. Each
layer is fed an embedding of its own beside the stream. Images and sound enter through two towers.
"""

from dataclasses import dataclass, replace
from typing import Literal

LayerType = Literal["sliding_attention", "full_attention"]
Size = Literal["tiny", "tiny-262k", "e4b"]


@dataclass(frozen=True)
class Text:
    """The language model. Widths are in elements."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    full_attention_every: int
    kv_shared_layers: int
    per_layer_input: int
    head_dim: int = 256
    global_head_dim: int = 512
    sliding_window: int = 512
    max_positions: int = 131_072

    @property
    def layer_types(self) -> tuple[LayerType, ...]:
        """The kind of attention of each layer."""
        return tuple(
            "sliding_attention" if number % self.full_attention_every else "full_attention"
            for number in range(1, self.layers + 1)
        )

    def head_dim_of(self, layer: int) -> int:
        """Width of the heads of layer number `layer`, counted from 0."""
        return self.head_dim if self.layer_types[layer] == "sliding_attention" else self.global_head_dim


@dataclass(frozen=True)
class Vision:
    """The image tower; an image becomes at most `soft_tokens` embeddings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    head_dim: int
    positions: int
    soft_tokens: int
    patch: int = 16
    pooling: int = 3

    @property
    def patch_values(self) -> int:
        """Colour values in one square patch."""
        return 3 * self.patch**2


@dataclass(frozen=True)
class Audio:
    """The sound tower. vLLM 0.20.2 leaves its weights out where the limit of audio inputs is 0."""

    hidden: int
    layers: int
    heads: int
    output: int
    convolution: int = 5
    mel_bins: int = 128
    channels: tuple[int, int] = (128, 32)


@dataclass(frozen=True)
class Gemma4:
    """One model."""

    text: Text
    vision: Vision
    audio: Audio


TINY = Gemma4(
    # The narrowest text model whose every quantized input is a multiple of the group size 128.
    Text(
        vocabulary=1024,
        hidden=256,
        intermediate=512,
        layers=6,
        heads=2,
        kv_heads=1,
        full_attention_every=3,
        kv_shared_layers=2,
        per_layer_input=128,
    ),
    # 70 soft tokens and 1,024 positions: on a CPU an image then takes a fifth of a second, not two.
    Vision(hidden=64, intermediate=128, layers=2, heads=2, head_dim=32, positions=1024, soft_tokens=70),
    Audio(hidden=64, layers=2, heads=2, output=64),
)

TINY_262K = replace(
    TINY,
    # 128 wide, and 8 for each layer's own embedding: the two tables of 262,144 rows are 92 MB.
    text=replace(TINY.text, vocabulary=262_144, hidden=128, intermediate=256, per_layer_input=8),
)
"""The smallest model with the real one's vocabulary: token ids, logits and masks are as large as in production."""

E4B = Gemma4(
    Text(
        vocabulary=262_144,
        hidden=2560,
        intermediate=10_240,
        layers=42,
        heads=8,
        kv_heads=2,
        full_attention_every=6,
        kv_shared_layers=18,
        per_layer_input=256,
    ),
    Vision(hidden=768, intermediate=3072, layers=16, heads=12, head_dim=64, positions=10_240, soft_tokens=280),
    Audio(hidden=1024, layers=12, heads=8, output=1536),
)
"""As google/gemma-4-E4B-it."""

SIZES: dict[Size, Gemma4] = {"tiny": TINY, "tiny-262k": TINY_262K, "e4b": E4B}
