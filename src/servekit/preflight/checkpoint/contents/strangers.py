"""Stored tensors that belong to no part of the configured model, and what vLLM 0.20.2 does with each.

Source: models/gemma4_mm.py, models/gemma4.py and models/utils.py (AutoWeightsLoader), their load_weights.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.naming import AUDIO_PROJECTOR, LM_HEAD, TEXT, UNKNOWN, VISION_PROJECTOR
from servekit.preflight.checkpoint.shard_header import Tensor
from servekit.preflight.findings import Finding, error

_ROTARY: Final = re.compile(r"rotary_(pos_)?emb\.(inv_freq|cos_cached|sin_cached)")
_TOWER: Final = re.compile(r"(vision_tower|audio_tower|embed_vision|embed_audio)\.")
_KV_SCALE: Final = re.compile(r"\.(k|v|q|kv)_scale$|\.(k|v|q)_zero_point$")
_EXPERTS: Final = re.compile(r"\.(moe|router|experts)\.|feedforward_layernorm_[12]")
_LAYER: Final = re.compile(r"layers\.(\d+)\.")


def check_strangers(
    parts: Mapping[str, Mapping[str, Tensor]], known: Mapping[str, set[str]], config: ModelConfig
) -> Iterator[Finding]:
    """Report the tensors of each part that are not in `known`; vLLM does not load the parts that `known` lacks."""
    dropped, rejected, beyond = [], [], []
    for part, stored in parts.items():
        for name in stored.keys() - known.get(part, set() if part in {TEXT, UNKNOWN} else stored.keys()):
            if _is_skipped(part, name, config):
                continue
            layer = _LAYER.match(name) if part == TEXT else None
            of_head, tied = f"{LM_HEAD}." in name, config.text is not None and config.text.tie_word_embeddings
            if name.endswith(".bias") and (tied if of_head else part == TEXT):
                dropped.append(stored[name])
            elif layer and config.text and int(layer[1]) >= config.text.num_hidden_layers:
                beyond.append(stored[name])
            else:
                rejected.append(stored[name])
    if dropped:
        yield error(
            "bias-dropped",
            f"{_some(dropped)}: vLLM {ENGINE_VERSION} drops biases that text_config does not declare, and the answers "
            "would be wrong",
            remedy="serve the checkpoint with the config.json it was saved with",
        )
    if beyond and config.text:
        yield error(
            "tensor-unexpected",
            f"{_some(beyond)}, of layers beyond config.json's {config.text.num_hidden_layers}",
            remedy="use config.json and weights of the same model",
        )
    if rejected:
        yield from _rejected(rejected, [tensor for stored in parts.values() for tensor in stored.values()])


def _is_skipped(part: str, name: str, config: ModelConfig) -> bool:
    """Whether vLLM passes over the tensor, so that it neither harms nor counts."""
    text = config.text
    return bool(
        _ROTARY.search(name)
        or ((part == TEXT or config.text_only) and _TOWER.search(name))
        or (part in {VISION_PROJECTOR, AUDIO_PROJECTOR} and name.startswith("embedding."))
        or (part == TEXT and _KV_SCALE.search(name))
        or (text and text.tie_word_embeddings and f"{LM_HEAD}." in name and not name.endswith(".bias"))
        or (text and text.enable_moe_block and _EXPERTS.search(name))
        or (text and text.attention_k_eq_v and ".self_attn.v_proj." in name)
    )


def _rejected(rejected: list[Tensor], every: list[Tensor]) -> Iterator[Finding]:
    """Report tensors that end vLLM's start; a file that holds nothing else is not of the checkpoint."""
    strange = {tensor.name for tensor in rejected}
    ours = {tensor.shard for tensor in every if tensor.name not in strange}
    for shard in sorted({tensor.shard for tensor in rejected}):
        found = _some([tensor for tensor in rejected if tensor.shard == shard])
        stray = shard not in ours
        message = f"{found}, of no part of the model: vLLM {ENGINE_VERSION} ends at a tensor that it does not know"
        yield error(
            "tensor-unexpected",
            message + (", and loads every *.safetensors of a folder without an index" if stray else ""),
            file=shard.name,
            remedy="move the file out of the folder" if stray else "take them out, or use the weights' own config.json",
        )


def _some(tensors: list[Tensor]) -> str:
    first = min(tensors, key=lambda tensor: tensor.name).name
    return f"holds {first}" + (f" and {len(tensors) - 1} more tensors" if tensors[1:] else "")
