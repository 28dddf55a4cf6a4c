"""Which modules a Gemma 4 language model has, and their shapes: what the shards must hold.

Shapes are those of vLLM 0.20.2, models/gemma4.py; names are relative to the language model, as
`naming.part_of` gives them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from servekit.preflight.checkpoint.text_config import TextConfig


@dataclass(frozen=True)
class Linear:
    """A linear module: weight [outputs, inputs]. `unused` marks projections a KV-shared layer never calls."""

    module: str
    outputs: int
    inputs: int
    unused: bool = False


@dataclass(frozen=True)
class Plain:
    """A tensor that is never quantized. `unused` as in Linear."""

    name: str
    shape: tuple[int, ...]
    unused: bool = False


def expected_modules(text: TextConfig) -> tuple[tuple[Linear, ...], tuple[Plain, ...]]:
    """Every linear module and every plain tensor of the language model.

    The experts of a mixture are left out: they are stored in several layouts.
    """
    linears, plains = list(_embedding_linears(text)), list(_embedding_tensors(text))
    for layer in range(text.num_hidden_layers):
        linears.extend(_layer_linears(text, layer))
        plains.extend(_layer_tensors(text, layer))
    return tuple(linears), tuple(plains)


def _embedding_linears(text: TextConfig) -> Iterator[Linear]:
    if width := text.hidden_size_per_layer_input:
        yield Linear("per_layer_model_projection", width * text.num_hidden_layers, text.hidden_size)


def _embedding_tensors(text: TextConfig) -> Iterator[Plain]:
    yield Plain("embed_tokens.weight", (text.vocab_size, text.hidden_size))
    yield Plain("norm.weight", (text.hidden_size,))
    if width := text.hidden_size_per_layer_input:
        table = (text.vocab_size_per_layer_input, width * text.num_hidden_layers)
        yield Plain("embed_tokens_per_layer.weight", table)
        yield Plain("per_layer_projection_norm.weight", (width,))


def _layer_linears(text: TextConfig, layer: int) -> Iterator[Linear]:
    attention, mlp = f"layers.{layer}.self_attn", f"layers.{layer}.mlp"
    query = text.num_attention_heads * text.head_size(layer)
    key = text.kv_heads(layer) * text.head_size(layer)
    shared = layer >= text.first_shared_layer
    yield Linear(f"{attention}.q_proj", query, text.hidden_size)
    yield Linear(f"{attention}.k_proj", key, text.hidden_size, unused=shared)
    if not (text.attention_k_eq_v and text.is_full(layer)):
        yield Linear(f"{attention}.v_proj", key, text.hidden_size, unused=shared)
    yield Linear(f"{attention}.o_proj", text.hidden_size, query)
    yield Linear(f"{mlp}.gate_proj", text.mlp_size(layer), text.hidden_size)
    yield Linear(f"{mlp}.up_proj", text.mlp_size(layer), text.hidden_size)
    yield Linear(f"{mlp}.down_proj", text.hidden_size, text.mlp_size(layer))
    if width := text.hidden_size_per_layer_input:
        yield Linear(f"layers.{layer}.per_layer_input_gate", width, text.hidden_size)
        yield Linear(f"layers.{layer}.per_layer_projection", text.hidden_size, width)


def _layer_tensors(text: TextConfig, layer: int) -> Iterator[Plain]:
    prefix = f"layers.{layer}"
    norms = [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ]
    if text.hidden_size_per_layer_input:
        norms.append("post_per_layer_input_norm")
    for norm in norms:
        yield Plain(f"{prefix}.{norm}.weight", (text.hidden_size,))
    head = (text.head_size(layer),)
    yield Plain(f"{prefix}.self_attn.q_norm.weight", head)
    yield Plain(f"{prefix}.self_attn.k_norm.weight", head, unused=layer >= text.first_shared_layer)
    yield Plain(f"{prefix}.layer_scalar", (1,))
