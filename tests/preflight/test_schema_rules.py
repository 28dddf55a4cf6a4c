"""Rules of the JSON files that only a whole start of the engine shows; `make verdicts` found them there."""

from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.checkpoint.schema.generation_types import generation_faults
from servekit.preflight.checkpoint.schema.processor_types import processor_faults
from servekit.preflight.checkpoint.schema.rope_types import text_rope_faults, vision_rope_faults
from servekit.preflight.checkpoint.schema.tokenizer_types import tokenizer_config_faults

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


IMAGE = {"do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 255}


@pytest.mark.parametrize(
    ("part", "key", "good", "bad"),
    [
        ("image_processor", "image_mean", (None, "x", [0.5]), ({}, [[]])),
        ("image_processor", "rescale_factor", (1, 0.5, None), ("x", [], {})),
        ("image_processor", "size", (None, 3, [1, 2], {"shortest_edge": 3}), ({"a": 1}, "x", [], [1], {})),
        ("image_processor", "pad_size", (None, {"height": 1, "width": 1}), ({"a": 1}, "x")),
        ("image_processor", "do_center_crop", (None, False, 0, [], {}), (True, "x", {"a": 1})),
        ("image_processor", "auto_map", ("", [], {}), (0, None, True)),
        ("image_processor", "unknown", (None, [], {"a": 1}), ()),
        ("video_processor", "crop_size", (None, {"height": 1, "width": 1}), ({"a": 1}, "x")),
        ("feature_extractor", "mel_floor", (None, 1, 0.5, [1.0]), ("", "x", {})),
        ("feature_extractor", "per_bin_mean", (None, [0.0] * 128), ([1.0], {"a": 1}, "x")),
        ("feature_extractor", "frame_length_ms", (20.0, 3), (0, None, "x", [1.0])),
        ("feature_extractor", "max_frequency", (8000.0, 0), (-1, None, "x", {})),
        ("feature_extractor", "dither", (None, "x", []), ()),
    ],
)
def test_processor_values(part: str, key: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    """A value that transformers computes with must be right, and one that it never reads may be anything."""
    section = IMAGE if part == "image_processor" else {}
    assert [value for value in good if processor_faults(part, section | {key: value})] == []
    assert [value for value in bad if not processor_faults(part, section | {key: value})] == []


def test_means_of_a_processor_that_normalizes() -> None:
    """The means count where images are normalized, and the factor only where they are rescaled."""
    assert processor_faults("image_processor", IMAGE | {"do_normalize": True, "image_mean": "x"})
    assert not processor_faults("image_processor", IMAGE | {"do_rescale": False, "rescale_factor": "x"})


def test_tokenizer_settings_that_replace_others(tmp_path: Path) -> None:
    """A file that is not there is not read in place of tokenizer.json, and no setting hides a method."""
    (tmp_path / "own.json").touch()
    for good in ({}, {"tokenizer_file": None}, {"tokenizer_file": str(tmp_path / "own.json")}, {"padding": True}):
        assert tokenizer_config_faults(good) == {}
    wrong: list[dict[str, Any]] = [
        {"tokenizer_file": "/none/tokenizer.json"},
        {"tokenizer_file": "n" * 5_000},  # the system refuses to look, as in root's folders
        {"add_special_tokens": 1},
        {"padding": {}},
    ]
    for bad in wrong:
        assert list(tokenizer_config_faults(bad)) == list(bad)
