"""How a Gemma 4 checkpoint names its modules, and how vLLM renames them.

Source: vLLM 0.20.2, models/gemma4_mm.py, hf_to_vllm_mapper and packed_modules_mapping.
"""

import re
from collections.abc import Mapping
from typing import Final

_RENAMED: Final = (
    ("model.embed_audio.", "embed_audio."),
    ("model.embed_vision.", "embed_vision."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.audio_tower.", "audio_tower."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
FUSED: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("self_attn", "qkv_proj"): ("q_proj", "k_proj", "v_proj"),
    ("mlp", "gate_up_proj"): ("gate_proj", "up_proj"),
}
"""Modules vLLM fuses into one: parent and name of the fused one, then its parts."""

TEXT: Final = "text"
VISION: Final = "vision_tower"
AUDIO: Final = "audio_tower"
VISION_PROJECTOR: Final = "embed_vision"
AUDIO_PROJECTOR: Final = "embed_audio"
LM_HEAD: Final = "lm_head"
_PARTS: Final = (VISION, AUDIO, VISION_PROJECTOR, AUDIO_PROJECTOR, LM_HEAD)
_TEXT_PREFIX: Final = re.compile(r"^(model\.)?(language_model\.(model\.)?)?")


def engine_name(name: str) -> str:
    """Return vLLM's name for a module or tensor of the checkpoint."""
    renamed = (new + name.removeprefix(old) for old, new in _RENAMED if name.startswith(old))
    return next(renamed, name)


def part_of(name: str) -> tuple[str, str]:
    """Split a tensor's name into part of the model and name within: `("text", "layers.0.mlp.up_proj.weight")`."""
    plain = _TEXT_PREFIX.sub("", name, count=1)
    part = next((part for part in _PARTS if plain.startswith(f"{part}.")), "")
    return (part, plain.removeprefix(f"{part}.")) if part else (TEXT, plain)
