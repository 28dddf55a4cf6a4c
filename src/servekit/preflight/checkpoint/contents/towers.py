"""The tensors of Gemma 4's vision and audio towers, by shape: what the shards must hold.

vLLM 0.20.2 builds the towers from transformers' classes (transformers 5.8, models/gemma4/modeling_gemma4.py), whose
defaults and names these are. A tensor that is missing keeps the class's own start value.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from servekit.preflight.checkpoint.contents.layers import Plain
from servekit.preflight.checkpoint.naming import VISION
from servekit.preflight.checkpoint.text_config import MAX_LAYERS, read_size

_VISION: Final[Mapping[str, int]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "patch_size": 16,
    "position_embedding_size": 10_240,
    "pooling_kernel_size": 3,
}
_AUDIO: Final[Mapping[str, int]] = {
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "conv_kernel_size": 5,
    "output_proj_dims": 1536,
}
_BLOCK_NORMS: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_BOUNDS: Final = ("input_min", "input_max", "output_min", "output_max")


def tower_tensors(tower: str, raw: Mapping[str, Any], text_hidden: int) -> tuple[list[Plain], list[Plain]]:
    """Return the tensors of a tower, and those of its projector into the language model.

    `raw` is its section of config.json; raises ValueError with what is wrong there.
    """
    vision = tower == VISION
    sizes = _sizes(raw, _VISION if vision else _AUDIO)
    width = sizes["hidden_size" if vision else "output_proj_dims"]
    build = _vision_tensors if vision else _audio_tensors
    return build(raw, sizes), [Plain("embedding_projection.weight", (text_hidden, width))]


def _vision_tensors(raw: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Plain]:
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    heads, keys = (sizes[f"num_{kind}_heads"] * sizes["head_dim"] for kind in ("attention", "key_value"))
    tensors = [
        Plain("patch_embedder.input_proj.weight", (hidden, 3 * sizes["patch_size"] ** 2)),
        Plain("patch_embedder.position_embedding_table", (2, sizes["position_embedding_size"], hidden)),
        *(Plain(name, (hidden,)) for name in ("std_bias", "std_scale") if raw.get("standardize")),
    ]
    linears = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(sizes["num_hidden_layers"]):
        block = f"encoder.layers.{layer}"
        tensors += [Plain(f"{block}.{norm}.weight", (hidden,)) for norm in _BLOCK_NORMS]
        tensors += [Plain(f"{block}.self_attn.{norm}.weight", (sizes["head_dim"],)) for norm in ("q_norm", "k_norm")]
        tensors += _linears(block, linears, clipped=bool(raw.get("use_clipped_linears", False)))
    return tensors


def _audio_tensors(raw: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Plain]:
    hidden, output = sizes["hidden_size"], sizes["output_proj_dims"]
    first, second = _channels(raw)
    root = "subsample_conv_projection"
    tensors = [
        Plain(f"{root}.layer0.conv.weight", (first, 1, 3, 3)),
        Plain(f"{root}.layer0.norm.weight", (first,)),
        Plain(f"{root}.layer1.conv.weight", (second, first, 3, 3)),
        Plain(f"{root}.layer1.norm.weight", (second,)),
        Plain(f"{root}.input_proj_linear.weight", (hidden, first // 4 * second)),
        Plain("output_proj.weight", (output, hidden)),
        Plain("output_proj.bias", (output,)),
    ]
    linears = {
        **{f"feed_forward{half}.ffw_layer_1": (4 * hidden, hidden) for half in (1, 2)},
        **{f"feed_forward{half}.ffw_layer_2": (hidden, 4 * hidden) for half in (1, 2)},
        **{f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "post")},
        "lconv1d.linear_start": (2 * hidden, hidden),
        "lconv1d.linear_end": (hidden, hidden),
    }
    norms = [f"feed_forward{half}.{side}_layer_norm" for half in (1, 2) for side in ("pre", "post")]
    norms += ["norm_pre_attn", "norm_post_attn", "norm_out", "lconv1d.pre_layer_norm", "lconv1d.conv_norm"]
    for layer in range(sizes["num_hidden_layers"]):
        block = f"layers.{layer}"
        tensors += [Plain(f"{block}.{norm}.weight", (hidden,)) for norm in norms]
        tensors += [
            Plain(f"{block}.self_attn.relative_k_proj.weight", (hidden, hidden)),
            Plain(f"{block}.self_attn.per_dim_scale", (hidden // sizes["num_attention_heads"],)),
            Plain(f"{block}.lconv1d.depthwise_conv1d.weight", (hidden, 1, sizes["conv_kernel_size"])),
        ]
        tensors += _linears(block, linears, clipped=bool(raw.get("use_clipped_linears", True)))
    return tensors


def _sizes(raw: Mapping[str, Any], defaults: Mapping[str, int]) -> dict[str, int]:
    problems: list[str] = []
    sizes = {key: read_size(raw, key, default, 1, problems) for key, default in defaults.items()}
    if sizes["num_hidden_layers"] > MAX_LAYERS:
        problems.append(f"num_hidden_layers {sizes['num_hidden_layers']} is more than {MAX_LAYERS}")
    if problems:
        raise ValueError("; ".join(problems))
    return sizes


def _channels(raw: Mapping[str, Any]) -> tuple[int, int]:
    channels = raw.get("subsampling_conv_channels", [128, 32])
    if isinstance(channels, list) and [type(each) for each in channels] == [int, int] and min(channels) > 0:
        return channels[0], channels[1]
    raise ValueError(f"subsampling_conv_channels must be two whole numbers, not {channels!r}")


def _linears(block: str, linears: Mapping[str, tuple[int, int]], *, clipped: bool) -> Iterator[Plain]:
    for name, shape in linears.items():
        yield Plain(f"{block}.{name}.linear.weight", shape)
        yield from (Plain(f"{block}.{name}.{bound}", ()) for bound in _BOUNDS if clipped)
