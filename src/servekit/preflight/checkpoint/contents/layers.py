"""The modules of a Gemma 4 language model, and their shapes: what the shards must hold.

Shapes are those of vLLM 0.20.2, models/gemma4.py; names are relative to the language model, as
`naming.part_of` gives them.
"""

from dataclasses import dataclass

from servekit.preflight.checkpoint.naming import LM_HEAD
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


def expected_modules(text: TextConfig) -> tuple[list[Linear], list[Plain]]:
    """Return every linear module and every plain tensor of the language model, and an untied `lm_head`.

    The experts of a mixture are left out: checkpoints store them in several layouts.
    """
    layers, hidden, width = text.num_hidden_layers, text.hidden_size, text.hidden_size_per_layer_input
    linears = [Linear("per_layer_model_projection", width * layers, hidden)] if width else []
    plains = [Plain("embed_tokens.weight", (text.vocab_size, hidden)), Plain("norm.weight", (hidden,))]
    if width:
        plains += [
            Plain("embed_tokens_per_layer.weight", (text.vocab_size_per_layer_input, width * layers)),
            Plain("per_layer_projection_norm.weight", (width,)),
        ]
    linears += [] if text.tie_word_embeddings else [Linear(LM_HEAD, text.vocab_size, hidden)]
    linears += [linear for layer in range(layers) for linear in _layer_linears(text, layer)]
    plains += [plain for layer in range(layers) for plain in _layer_tensors(text, layer)]
    if text.attention_bias:
        biased = [linear for linear in linears if ".self_attn." in linear.module]
        plains += [Plain(f"{each.module}.bias", (each.outputs,), unused=each.unused) for each in biased]
    return linears, plains


def _layer_linears(text: TextConfig, layer: int) -> list[Linear]:
    prefix, hidden, width = f"layers.{layer}", text.hidden_size, text.hidden_size_per_layer_input
    query = text.num_attention_heads * text.head_size(layer)
    key = text.kv_heads(layer) * text.head_size(layer)
    shared = layer >= text.first_shared_layer
    linears = [
        Linear(f"{prefix}.self_attn.q_proj", query, hidden),
        Linear(f"{prefix}.self_attn.k_proj", key, hidden, unused=shared),
        Linear(f"{prefix}.self_attn.o_proj", hidden, query),
        Linear(f"{prefix}.mlp.gate_proj", text.mlp_size(layer), hidden),
        Linear(f"{prefix}.mlp.up_proj", text.mlp_size(layer), hidden),
        Linear(f"{prefix}.mlp.down_proj", hidden, text.mlp_size(layer)),
    ]
    if not (text.attention_k_eq_v and text.is_full(layer)):
        linears.append(Linear(f"{prefix}.self_attn.v_proj", key, hidden, unused=shared))
    if width:
        linears += [
            Linear(f"{prefix}.per_layer_input_gate", width, hidden),
            Linear(f"{prefix}.per_layer_projection", hidden, width),
        ]
    return linears


def _layer_tensors(text: TextConfig, layer: int) -> list[Plain]:
    prefix, head = f"layers.{layer}", (text.head_size(layer),)
    norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    norms += ["post_per_layer_input_norm"] if text.hidden_size_per_layer_input else []
    return [
        *(Plain(f"{prefix}.{norm}.weight", (text.hidden_size,)) for norm in norms),
        Plain(f"{prefix}.self_attn.q_norm.weight", head),
        Plain(f"{prefix}.self_attn.k_norm.weight", head, unused=layer >= text.first_shared_layer),
        Plain(f"{prefix}.layer_scalar", (1,)),
    ]
