"""How a Gemma 4 checkpoint names its modules, and how vLLM renames them.

Source: vLLM 0.20.2, models/gemma4_mm.py (hf_to_vllm_mapper, packed_modules_mapping) and models/gemma4.py.
"""

from collections.abc import Mapping
from typing import Final

_RENAMED: Final = (
    ("model.embed_audio.", "embed_audio."),
    ("model.embed_vision.", "embed_vision."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.audio_tower.", "audio_tower."),
    ("lm_head.", "language_model.lm_head."),
    ("model", "language_model.model"),
)
_RENAMED_TEXT_ONLY: Final = (("model.language_model.", "model."),)
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
UNKNOWN: Final = ""
_LANGUAGE: Final = "language_model."
_WITHIN: Final = {
    **{f"{part}.": part for part in (VISION, AUDIO, VISION_PROJECTOR, AUDIO_PROJECTOR)},
    f"{_LANGUAGE}model.": TEXT,
    f"{_LANGUAGE}lm_head.": LM_HEAD,
}


def engine_name(name: str, *, text_only: bool = False) -> str:
    """Return vLLM's name for a module or tensor of the checkpoint; `text_only`: of Gemma4ForCausalLM."""
    for old, new in _RENAMED_TEXT_ONLY if text_only else _RENAMED:
        if name.startswith(old):
            name = name.replace(old, new, 1)
    return name


def part_of(name: str) -> tuple[str, str]:
    """Split a tensor's name into part of the model and name within: `("text", "layers.0.mlp.up_proj.weight")`.

    The part is UNKNOWN if vLLM has no module there.
    """
    plain = engine_name(name)
    if plain.startswith(_LANGUAGE):
        plain = _LANGUAGE + plain.replace(_LANGUAGE, "")
    prefix = next((prefix for prefix in _WITHIN if plain.startswith(prefix)), UNKNOWN)
    return (_WITHIN[prefix], plain.removeprefix(prefix)) if prefix else (UNKNOWN, name)
