"""Rules of the JSON files that only a whole start of the engine shows; `make verdicts` found them there."""

from typing import Any

import pytest

from servekit.preflight.checkpoint.schema.generation_types import generation_faults
from servekit.preflight.checkpoint.schema.rope_types import text_rope_faults, vision_rope_faults

DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}
BOTH = {"sliding_attention": DEFAULT, "full_attention": {**DEFAULT, "rope_type": "proportional"}}


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        (BOTH, []),
        (None, []),
        (DEFAULT, []),
        ({}, ["full_attention", "sliding_attention"]),
        ({"sliding_attention": DEFAULT}, ["full_attention"]),
        (BOTH | {"full_attention": []}, ["full_attention"]),
        (BOTH | {"full_attention": {**DEFAULT, "rope_type": "X"}}, ["full_attention.rope_type"]),
        (BOTH | {"full_attention": {**DEFAULT, "rope_theta": None}}, ["full_attention.rope_theta"]),
        (BOTH | {"full_attention": {**DEFAULT, "rope_theta": -1}}, ["full_attention.rope_theta"]),
        (
            BOTH | {"full_attention": {**DEFAULT, "partial_rotary_factor": 1.5}},
            ["full_attention.partial_rotary_factor"],
        ),
        (BOTH | {"full_attention": {**DEFAULT, "rope_type": "linear"}}, ["full_attention.factor"]),
    ],
)
def test_text_rope(rope: Any, keys: list[str]) -> None:
    """Each kind of layer needs a known type, a positive base, and a share between 0 and 1."""
    faults = text_rope_faults({"rope_parameters": rope, "layer_types": ["sliding_attention", "full_attention"]})
    assert [key.removeprefix("rope_parameters.") for key, _ in faults] == keys


def test_vision_rope() -> None:
    """The vision tower has a default base; its type must be known too."""
    assert list(vision_rope_faults({"rope_parameters": {"rope_type": "default"}})) == []
    assert [key for key, _ in vision_rope_faults({"rope_parameters": {"rope_type": "DEFAULT"}})] == [
        "rope_parameters.rope_type"
    ]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("temperature", (0, 1.5), (-1, "x", [])),
        ("top_p", (0.1, 1), (0, 1.5, -1)),
        ("top_k", (-1, 0, 64), (-2, 0.5, "x")),
        ("min_p", (0, 1), (2, -0.5)),
        ("repetition_penalty", (0.5, 2), (0, -1)),
        ("max_new_tokens", (1, 9), (0, -1, 0.5)),
        ("eos_token_id", (1, [1, 9], None), (0.5,)),
    ],
)
def test_sampling_defaults(key: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    """A sampling default that vLLM rejects in every request is a fault; null is not."""
    assert [generation_faults({key: value}) for value in (*good, None)] == [{}] * (len(good) + 1)
    assert [list(generation_faults({key: value})) for value in bad] == [[key]] * len(bad)
