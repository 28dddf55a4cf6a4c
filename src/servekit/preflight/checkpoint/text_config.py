"""The text configuration of a Gemma 4 model, and the heads and the cache of each layer.

Names and defaults are those of `text_config` in a checkpoint's config.json (transformers 5.8, Gemma4TextConfig).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SLIDING: Final = "sliding_attention"
FULL: Final = "full_attention"
ARCHITECTURES: Final = ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM")

_FULL_EVERY: Final = 6
_ACTIVATION: Final = "gelu_pytorch_tanh"
MAX_LAYERS: Final = 1000
"""A configuration with more layers is damaged; preflight looks at each layer."""
_SIZES: Final[Mapping[str, tuple[int | str | None, int]]] = {
    "hidden_size": (None, 1),
    "intermediate_size": (None, 1),
    "num_hidden_layers": (None, 1),
    "num_attention_heads": (8, 1),
    "num_key_value_heads": (None, 1),
    "vocab_size": (262_144, 1),
    "head_dim": (256, 1),
    "global_head_dim": (512, 1),
    "sliding_window": (512, 1),
    "max_position_embeddings": (131_072, 1),
    "num_kv_shared_layers": (0, 0),
    "hidden_size_per_layer_input": (256, 0),
    "num_global_key_value_heads": ("num_key_value_heads", 1),
    "vocab_size_per_layer_input": (262_144, 1),
}
"""Each size with its default (None: the size is required; a name: the value of that size) and its minimum."""


@dataclass(frozen=True)
class TextConfig:
    """Shapes of a Gemma 4 language model; sizes in elements, `sliding_window` and positions in tokens."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_global_key_value_heads: int
    head_dim: int
    global_head_dim: int
    sliding_window: int
    max_position_embeddings: int
    vocab_size: int
    vocab_size_per_layer_input: int
    hidden_size_per_layer_input: int
    num_kv_shared_layers: int
    layer_types: tuple[str, ...]
    attention_bias: bool
    attention_k_eq_v: bool
    use_double_wide_mlp: bool
    enable_moe_block: bool
    tie_word_embeddings: bool

    @property
    def first_shared_layer(self) -> int:
        """Index of the first layer that reads an earlier layer's KV cache; the number of layers that own one."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def is_full(self, layer: int) -> bool:
        """Whether the layer attends to the whole context."""
        return self.layer_types[layer] == FULL

    def head_size(self, layer: int) -> int:
        """Elements of one head in this layer."""
        return self.global_head_dim if self.is_full(layer) else self.head_dim

    def kv_heads(self, layer: int) -> int:
        """Key (and value) heads of this layer."""
        if self.is_full(layer) and self.attention_k_eq_v:
            return self.num_global_key_value_heads
        return self.num_key_value_heads

    def mlp_size(self, layer: int) -> int:
        """Width of the layer's MLP: doubled in KV-shared layers with `use_double_wide_mlp`."""
        shared = 0 < self.first_shared_layer <= layer
        return self.intermediate_size * (2 if self.use_double_wide_mlp and shared else 1)


def parse_text_config(raw: Mapping[str, Any]) -> TextConfig:
    """Read `text_config`; raises ValueError with every problem, separated by semicolons."""
    problems: list[str] = []
    sizes: dict[str, int] = {}
    for key, (default, minimum) in _SIZES.items():
        fallback = sizes[default] if isinstance(default, str) else default
        sizes[key] = read_size(raw, key, fallback, minimum, problems)
    layers = sizes["num_hidden_layers"]
    if layers > MAX_LAYERS:
        raise ValueError("; ".join([*problems, f"num_hidden_layers {layers} is more than {MAX_LAYERS}"]))
    layer_types = _layer_types(raw, layers, sizes["num_kv_shared_layers"], problems)
    activation = raw.get("hidden_activation", _ACTIVATION)
    if activation != _ACTIVATION:
        problems.append(f"hidden_activation must be {_ACTIVATION!r}, not {activation!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return TextConfig(
        **sizes,
        layer_types=layer_types,
        attention_bias=bool(raw.get("attention_bias", False)),
        attention_k_eq_v=bool(raw.get("attention_k_eq_v", False)),
        use_double_wide_mlp=bool(raw.get("use_double_wide_mlp", False)),
        enable_moe_block=bool(raw.get("enable_moe_block", False)),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)),
    )


def read_size(raw: Mapping[str, Any], key: str, default: int | None, minimum: int, problems: list[str]) -> int:
    """Return the whole number at `key`, or the default; anything else is added to `problems`."""
    if minimum == 0 and raw.get(key, "") is None:
        return 0  # vLLM 0.20.2 reads a null width of the per-layer embeddings as "none" (models/gemma4.py)
    value = raw.get(key) if raw.get(key) is not None else default
    if type(value) is int and value >= minimum:
        return value
    wrong = f"{key} must be a whole number of at least {minimum}, not {value!r}"
    problems.append(f"{key} is missing" if value is None else wrong)
    return 1


def _layer_types(raw: Mapping[str, Any], layers: int, shared: int, problems: list[str]) -> tuple[str, ...]:
    types = raw.get("layer_types")
    if types is None:  # transformers 5.8 makes every sixth layer and the last one full
        types = [FULL if number % _FULL_EVERY == 0 or number == layers else SLIDING for number in range(1, layers + 1)]
    if not isinstance(types, list) or not all(kind in (SLIDING, FULL) for kind in types):
        problems.append(f"layer_types may hold {SLIDING!r} and {FULL!r} only")
    elif len(types) != layers:
        problems.append(f"layer_types names {len(types)} layers, num_hidden_layers is {layers}")
    elif shared >= layers:
        problems.append(f"num_kv_shared_layers {shared} leaves none of {layers} layers with a KV cache")
    else:
        orphans = sorted(set(types[layers - shared :]) - set(types[: layers - shared]))
        problems += [f"KV-shared layers of type {kind!r} have no earlier layer of that type" for kind in orphans]
        return tuple(types)
    return ()
