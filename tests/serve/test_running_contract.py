"""The running engine's reported values compared with the planned ones."""

from typing import Any

import pytest

from servekit.profile import resolve
from servekit.serve.watch.running_contract import broken, compare_contract

EFFECTIVE: dict[str, Any] = {
    "kv_cache_dtype": "fp8_e4m3",
    "quantization": "compressed-tensors",
    "max_num_seqs": 1024,
    "max_model_len": 20_000,
    "multimodal": True,
    "head_dim": 256,
    "global_head_dim": 512,
    "attention_backend": "TRITON_ATTN",
    "structured_outputs_backend": "guidance",
    "served_model_names": ["m"],
    "limit_mm_per_prompt": {"image": 3, "audio": 0, "video": 0},
    "pillow": "13.0.0",
    "enable_prompt_embeds": False,
    "enable_mm_embeds": False,
    "mm_processor_cache_type": "lru",
    "kv_transfer_config": None,
}
"""The guard's report of an engine with the contract's values."""

CONTRACT: dict[str, Any] = {
    "kv-cache-dtype": "fp8_e4m3",
    "quantization": "compressed-tensors",
    "max-num-seqs": 1024,
    "limit-mm-per-prompt": {"image": 3, "audio": 0, "video": 0},
}


def differs(values: dict[str, Any], **effective: Any) -> str:
    """Return what differs from these values in an engine that has `effective` in place of the contract's."""
    return broken(compare_contract(resolve(values, target="cuda"), "m", EFFECTIVE | effective))


def pillow(effective: dict[str, Any], **limits: int) -> str:
    """Return what differs in the engine's image decoder if prompts may hold this many of each modality."""
    values: dict[str, Any] = {"limit-mm-per-prompt": dict(limits)} if limits else {}
    items = compare_contract(resolve(values, target="cpu"), "model", effective)
    return broken([item for item in items if item.name == "pillow"])


def test_the_contract_is_kept_and_each_part_of_it_can_break() -> None:
    """An engine with the planned values meets the contract; a part with another value, or none, breaks it."""
    assert differs(CONTRACT) == ""
    for name in EFFECTIVE.keys() - {"multimodal", "head_dim", "global_head_dim", "max_model_len"}:
        assert differs(CONTRACT, **{name: {} if name == "limit_mm_per_prompt" else "another"}), name
        rest = {each: value for each, value in EFFECTIVE.items() if each != name}
        assert broken(compare_contract(resolve(CONTRACT, target="cuda"), "m", rest)), name


@pytest.mark.parametrize("key", ["max-num-seqs", "quantization", "kv-cache-dtype", "limit-mm-per-prompt"])
def test_what_the_profile_leaves_out_is_vllms_to_choose(key: str) -> None:
    """A contract key that is left out, as --deviate allows, requires nothing of the engine."""
    left = {each: value for each, value in CONTRACT.items() if each != key}
    chosen: dict[str, dict[str, Any]] = {
        "max-num-seqs": {"max_num_seqs": 256},
        "quantization": {"quantization": None},
        "kv-cache-dtype": {"kv_cache_dtype": "auto"},
        "limit-mm-per-prompt": {"limit_mm_per_prompt": dict.fromkeys(("image", "audio", "video"), 999)},
    }
    assert differs(left, **chosen[key]) == ""


@pytest.mark.parametrize(
    ("wanted", "got", "holds"),
    [
        ("host or gpu", "host", True),
        ("host or gpu", "gpu", True),
        ("host", "gpu", False),
        ("gpu", "host", False),
        ("host", "none", True),
        ("host", None, False),
        ("host", "gpu and host", False),
    ],
)
def test_the_embeddings_are_where_the_worker_found_them(wanted: str, got: str | None, holds: bool) -> None:  # noqa: FBT001
    """The tensor decides; `auto` allows both memories, a model may have no such table, and no report breaks it."""
    worker = {"per-layer-embeddings": got, "activations": "float8_e4m3fn"} if got else {}
    loaded = {"per-layer-embeddings": wanted}
    items = compare_contract(resolve(CONTRACT, target="cuda"), "m", EFFECTIVE | {"worker": worker}, loaded)
    assert (broken(items) == "") is holds
    other = compare_contract(resolve({}, target="cuda"), "m", {"worker": worker}, {"activations": "bfloat16"})
    assert "activations: wanted bfloat16" in broken(other)


def test_an_automatic_length_is_what_vllm_takes() -> None:
    """With max-model-len auto any length is right, but a missing one is not."""
    automatic = CONTRACT | {"max-model-len": "auto"}
    assert differs(automatic, max_model_len=131_072) == ""
    assert "max-model-len: wanted auto" in differs(automatic, max_model_len=None)
    assert "max-model-len: wanted 4096" in differs(CONTRACT | {"max-model-len": 4096})


@pytest.mark.parametrize("heads", [(256, 256), (128, 256), (None, None)])
def test_one_backend_is_demanded_of_two_head_sizes_only(heads: tuple[int | None, int | None]) -> None:
    """vLLM forces TRITON_ATTN on a model whose layers differ in head size beyond 256, and on no other."""
    sizes = dict(zip(("head_dim", "global_head_dim"), heads, strict=True))
    assert differs(CONTRACT, attention_backend=None, **sizes) == ""
    assert "attention-backend" in differs(CONTRACT, attention_backend=None)


def test_a_model_of_text_alone_keeps_a_contract_without_images() -> None:
    """A text-only model has no limits and no image parts to report; if images are wanted, it breaks the contract."""
    text = dict.fromkeys(("limit_mm_per_prompt", "enable_mm_embeds", "mm_processor_cache_type", "pillow"))
    closed = CONTRACT | {"limit-mm-per-prompt": {"image": 0, "audio": 0, "video": 0}}
    assert differs(closed, multimodal=False, **text) == ""
    assert differs(CONTRACT, multimodal=False, **text) == "image limit: wanted 3, the engine runs with 0"


@pytest.mark.parametrize("version", ["12.2.0", None])
def test_an_old_image_decoder_breaks_the_contract(version: str | None) -> None:
    """If images are allowed, a Pillow with published vulnerabilities or without a reported version is rejected."""
    wanted = f"pillow: wanted 13.0.0 or newer, the engine runs with {version}"
    assert pillow({"pillow": version}, image=3) == pillow({"pillow": version}) == wanted
    assert pillow({}, audio=0) == "pillow: wanted 13.0.0 or newer, the engine runs with None"


def test_a_recent_image_decoder_keeps_the_contract() -> None:
    """The minimum version or a newer one passes; without images the version does not matter."""
    assert pillow({"pillow": "13.0.0"}, image=3) == pillow({"pillow": "13.2.1"}) == pillow({}, image=0) == ""
