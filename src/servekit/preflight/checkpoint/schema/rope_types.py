"""Rotary position embeddings: the `rope_parameters` of text and vision configuration.

Sources: transformers 5.8, modeling_rope_utils.py, and vLLM 0.20.2, layers/rotary_embedding.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard

from servekit.preflight.checkpoint.text_config import FULL, SLIDING

_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "proportional": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""The types that both libraries know, with the keys that each needs besides `rope_theta`."""


def text_rope_faults(text: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the dotted key of each fault, and what is wrong there; one set of parameters may hold for all layers."""
    rope = text.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    layers = text.get("layer_types")
    kinds = {kind for kind in layers if isinstance(kind, str)} if isinstance(layers, list) else {SLIDING, FULL}
    if not rope.keys() <= kinds:
        yield from _faults("rope_parameters", rope, theta=None)
        return
    for kind in sorted(kinds):
        yield from _faults(f"rope_parameters.{kind}", rope.get(kind), theta=None)


def vision_rope_faults(vision: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the dotted key of each fault, and what is wrong there."""
    if isinstance(rope := vision.get("rope_parameters"), dict):
        yield from _faults("rope_parameters", rope, theta=100.0)


def _faults(path: str, rope: object, *, theta: float | None) -> Iterator[tuple[str, str]]:
    if not isinstance(rope, dict):
        yield path, "must be an object with rope_type and rope_theta"
        return
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _NEEDED:
        yield f"{path}.rope_type", f"must be one of {', '.join(_NEEDED)}"
        return
    base, share = rope.get("rope_theta", theta), rope.get("partial_rotary_factor", 1)
    if not _is_number(base) or base <= 0:
        yield f"{path}.rope_theta", "must be a positive number"
    if not _is_number(share) or not 0 < share <= 1:
        yield f"{path}.partial_rotary_factor", "must be a number above 0, at most 1"
    yield from ((f"{path}.{key}", f"is missing, and {kind!r} needs it") for key in _NEEDED[kind] if key not in rope)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
