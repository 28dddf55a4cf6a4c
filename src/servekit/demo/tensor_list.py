"""Which tensors a Gemma 4 checkpoint consists of, computed from the dimensions.

Names and shapes are those transformers 5.8 saves for Gemma4ForConditionalGeneration and vLLM 0.20.2 reads, with
one addition: layers that share keys and values carry `k_proj`, `v_proj` and `k_norm` all the same. transformers
leaves them out, but vLLM allocates them and its strict loader asks for them
(vllm/model_executor/models/gemma4.py).

How the weights are drawn: every matrix keeps a unit input at unit size, so nothing grows or dies on the way
through the layers; the output norm spreads the logits. Tokens that are no words have quiet embedding rows, so
their logits stay near zero under hundreds of loud ones: the model practically never ends a text on its own.
"""

from collections.abc import Iterator, Sequence

from servekit.demo.fills import INT4_STD, Constant, Fill, Integers, Normal, PackedInt4, Uniform
from servekit.demo.shard_writer import Tensor
from servekit.demo.sizes import Audio, Gemma4, Text, Vision

GROUP_SIZE = 128
"""Weights along the input dimension that share one scale."""

INT4_PER_WORD = 8

ONE = Constant(1.0)

EMBEDDING_SIZE = 0.125
"""Size of a token's embedding as it enters the layers: small beside what they add, so texts do not repeat a token."""

LOGIT_STD = 3.0

CLIP = 1024.0
"""Bound of the towers' clipped linear layers; nothing in a random tower comes near it."""


def tensors(model: Gemma4, *, quantized: bool, quiet_tokens: Sequence[int] = ()) -> list[Tensor]:
    """Every tensor of the checkpoint, in the order of the forward pass.

    With `quantized` the linear layers of the decoder are W4A16 in the compressed-tensors format "pack-quantized";
    everything else is BF16. The rows of `quiet_tokens` in the embedding table are drawn smaller.
    """
    return [
        *_vision(model.vision),
        *_audio(model.audio),
        *_projector("model.embed_vision", model.vision.hidden, model.text.hidden),
        *_projector("model.embed_audio", model.audio.output, model.text.hidden),
        *_text(model.text, quantized=quantized, quiet_tokens=tuple(quiet_tokens)),
    ]


def _text(text: Text, *, quantized: bool, quiet_tokens: tuple[int, ...]) -> Iterator[Tensor]:
    root = "model.language_model"
    # Embeddings are multiplied by the square root of their width, the table being the output matrix as well.
    std = EMBEDDING_SIZE * text.hidden**-0.5
    all_layers = text.layers * text.per_layer_input
    yield _bf16(f"{root}.embed_tokens.weight", (text.vocabulary, text.hidden), Normal(std, quiet_tokens))
    yield _bf16(
        f"{root}.embed_tokens_per_layer.weight",
        (text.vocabulary, all_layers),
        Normal(text.per_layer_input**-0.5),
    )
    yield _matrix(f"{root}.per_layer_model_projection.weight", all_layers, text.hidden)
    yield _norm(f"{root}.per_layer_projection_norm", text.per_layer_input)
    for layer in range(text.layers):
        yield from _decoder_layer(f"{root}.layers.{layer}", text, text.head_dim_of(layer), quantized=quantized)
    yield _norm(f"{root}.norm", text.hidden, LOGIT_STD / EMBEDDING_SIZE)


def _decoder_layer(root: str, text: Text, head_dim: int, *, quantized: bool) -> Iterator[Tensor]:
    linear = _packed_int4 if quantized else _linear
    queries, keys = text.heads * head_dim, text.kv_heads * head_dim
    yield _norm(f"{root}.input_layernorm", text.hidden)
    yield from linear(f"{root}.self_attn.q_proj", queries, text.hidden)
    yield from linear(f"{root}.self_attn.k_proj", keys, text.hidden)
    yield from linear(f"{root}.self_attn.v_proj", keys, text.hidden)
    # Attention has no factor of its own: this norm keeps its logits at unit size.
    yield _norm(f"{root}.self_attn.q_norm", head_dim, head_dim**-0.5)
    yield _norm(f"{root}.self_attn.k_norm", head_dim)
    yield from linear(f"{root}.self_attn.o_proj", text.hidden, queries)
    yield _norm(f"{root}.post_attention_layernorm", text.hidden)
    yield _norm(f"{root}.pre_feedforward_layernorm", text.hidden)
    yield from linear(f"{root}.mlp.gate_proj", text.intermediate, text.hidden)
    yield from linear(f"{root}.mlp.up_proj", text.intermediate, text.hidden)
    yield from linear(f"{root}.mlp.down_proj", text.hidden, text.intermediate)
    yield _norm(f"{root}.post_feedforward_layernorm", text.hidden)
    yield _matrix(f"{root}.per_layer_input_gate.weight", text.per_layer_input, text.hidden)
    yield _matrix(f"{root}.per_layer_projection.weight", text.hidden, text.per_layer_input)
    yield _norm(f"{root}.post_per_layer_input_norm", text.hidden)
    yield _bf16(f"{root}.layer_scalar", (1,), ONE)


def _vision(vision: Vision) -> Iterator[Tensor]:
    root = "model.vision_tower"
    heads = vision.heads * vision.head_dim
    yield _matrix(f"{root}.patch_embedder.input_proj.weight", vision.hidden, vision.patch_values)
    table = (2, vision.positions, vision.hidden)
    yield _bf16(f"{root}.patch_embedder.position_embedding_table", table, Normal(1.0))
    for layer in range(vision.layers):
        block = f"{root}.encoder.layers.{layer}"
        yield _norm(f"{block}.input_layernorm", vision.hidden)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from _clipped(f"{block}.self_attn.{name}", heads, vision.hidden)
        yield _norm(f"{block}.self_attn.q_norm", vision.head_dim, vision.head_dim**-0.5)
        yield _norm(f"{block}.self_attn.k_norm", vision.head_dim)
        yield from _clipped(f"{block}.self_attn.o_proj", vision.hidden, heads)
        yield _norm(f"{block}.post_attention_layernorm", vision.hidden)
        yield _norm(f"{block}.pre_feedforward_layernorm", vision.hidden)
        yield from _clipped(f"{block}.mlp.gate_proj", vision.intermediate, vision.hidden)
        yield from _clipped(f"{block}.mlp.up_proj", vision.intermediate, vision.hidden)
        yield from _clipped(f"{block}.mlp.down_proj", vision.hidden, vision.intermediate)
        yield _norm(f"{block}.post_feedforward_layernorm", vision.hidden)


def _audio(audio: Audio) -> Iterator[Tensor]:
    root = "model.audio_tower"
    yield from _audio_convolutions(f"{root}.subsample_conv_projection", audio)
    for layer in range(audio.layers):
        yield from _conformer_layer(f"{root}.layers.{layer}", audio)
    yield _matrix(f"{root}.output_proj.weight", audio.output, audio.hidden)
    yield _bf16(f"{root}.output_proj.bias", (audio.output,), Constant(0.0))


def _audio_convolutions(root: str, audio: Audio) -> Iterator[Tensor]:
    first, second = audio.channels
    yield _bf16(f"{root}.layer0.conv.weight", (first, 1, 3, 3), Normal(9**-0.5))
    yield _norm(f"{root}.layer0.norm", first)
    yield _bf16(f"{root}.layer1.conv.weight", (second, first, 3, 3), Normal((9 * first) ** -0.5))
    yield _norm(f"{root}.layer1.norm", second)
    # Each of the two convolutions halves the number of mel bins.
    yield _matrix(f"{root}.input_proj_linear.weight", audio.hidden, second * audio.mel_bins // 4)


def _conformer_layer(root: str, audio: Audio) -> Iterator[Tensor]:
    hidden = audio.hidden
    for half in ("feed_forward1", "feed_forward2"):
        yield _norm(f"{root}.{half}.pre_layer_norm", hidden)
        yield from _clipped(f"{root}.{half}.ffw_layer_1", 4 * hidden, hidden)
        yield from _clipped(f"{root}.{half}.ffw_layer_2", hidden, 4 * hidden)
        yield _norm(f"{root}.{half}.post_layer_norm", hidden)
    yield _norm(f"{root}.norm_pre_attn", hidden)
    for name in ("q_proj", "k_proj", "v_proj", "post"):
        yield from _clipped(f"{root}.self_attn.{name}", hidden, hidden)
    yield _matrix(f"{root}.self_attn.relative_k_proj.weight", hidden, hidden)
    yield _bf16(f"{root}.self_attn.per_dim_scale", (hidden // audio.heads,), ONE)
    yield _norm(f"{root}.norm_post_attn", hidden)
    yield _norm(f"{root}.lconv1d.pre_layer_norm", hidden)
    yield from _clipped(f"{root}.lconv1d.linear_start", 2 * hidden, hidden)
    kernel = (hidden, 1, audio.convolution)
    yield _bf16(f"{root}.lconv1d.depthwise_conv1d.weight", kernel, Normal(audio.convolution**-0.5))
    yield _norm(f"{root}.lconv1d.conv_norm", hidden)
    yield from _clipped(f"{root}.lconv1d.linear_end", hidden, hidden)
    yield _norm(f"{root}.norm_out", hidden)


def _projector(root: str, tower: int, hidden: int) -> Iterator[Tensor]:
    yield _matrix(f"{root}.embedding_projection.weight", hidden, tower)


def _packed_int4(root: str, outputs: int, inputs: int) -> Iterator[Tensor]:
    """Describe a W4A16 layer as compressed-tensors 0.15 stores it: packed weights, scales, the shape."""
    scale = inputs**-0.5 / INT4_STD
    yield Tensor(f"{root}.weight_packed", "I32", (outputs, inputs // INT4_PER_WORD), PackedInt4())
    yield _bf16(f"{root}.weight_scale", (outputs, inputs // GROUP_SIZE), Uniform(0.75 * scale, 1.25 * scale))
    yield Tensor(f"{root}.weight_shape", "I64", (2,), Integers((outputs, inputs)))


def _linear(root: str, outputs: int, inputs: int) -> Iterator[Tensor]:
    yield _matrix(f"{root}.weight", outputs, inputs)


def _clipped(root: str, outputs: int, inputs: int) -> Iterator[Tensor]:
    yield _matrix(f"{root}.linear.weight", outputs, inputs)
    for side in ("input", "output"):
        yield _bf16(f"{root}.{side}_min", (), Constant(-CLIP))
        yield _bf16(f"{root}.{side}_max", (), Constant(CLIP))


def _matrix(name: str, outputs: int, inputs: int) -> Tensor:
    return _bf16(name, (outputs, inputs), Normal(inputs**-0.5))


def _norm(root: str, width: int, weight: float = 1.0) -> Tensor:
    return _bf16(f"{root}.weight", (width,), Constant(weight))


def _bf16(name: str, shape: tuple[int, ...], fill: Fill) -> Tensor:
    return Tensor(name, "BF16", shape, fill)
