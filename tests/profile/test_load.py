"""What `load_profile` accepts, and what it returns."""

import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from servekit.profile import CONTRACT, Deviation, Profile, load_profile

Write = Callable[[str], Path]
Refused = Callable[..., list[str]]


def test_shipped_profile_is_the_cards(root: Path) -> None:
    """The file at the repository's root has the model card's values, no audio or video, and tools and thinking."""
    profile = load_profile(root / "vllm_config.yaml")
    assert profile.arguments == {
        "gpu-memory-utilization": 0.9,
        "max-model-len": 20000,
        "max-num-seqs": 1024,
        "max-num-batched-tokens": 4096,
        "enable-prefix-caching": True,
        "enable-chunked-prefill": True,
        "quantization": "compressed-tensors",
        "kv-cache-dtype": "fp8_e4m3",
        "limit-mm-per-prompt": {"image": 3, "audio": 0, "video": 0},
        "enable-auto-tool-choice": True,
        "tool-call-parser": "gemma4",
        "reasoning-parser": "gemma4",
    }
    assert profile.deviations == ()


def test_baseline_loads_with_its_two_deviations(refused: Refused, root: Path) -> None:
    """The baseline lists its deviations, with vLLM's default for a missing key."""
    path = root / "profiles" / "fp16-baseline.yaml"
    profile = load_profile(path, deviate={"quantization", "kv-cache-dtype"})
    assert profile.deviations == (
        Deviation("kv-cache-dtype", "fp8_e4m3", "auto", "--deviate"),
        Deviation("quantization", "compressed-tensors", None, "--deviate"),
    )
    assert len(refused(path)) == 2


def test_limits_must_close_every_other_modality(refused: Refused, write: Write, smallest: str) -> None:
    """Limits that list only images leave audio and video at vLLM's 999, which are two mistakes."""
    alone, key = smallest.replace("  audio: 0\n  video: 0\n", ""), "limit-mm-per-prompt"
    assert [line.partition(";")[0] for line in refused(write(alone))] == [
        f"profile.yaml:4: error: {key}.{kind}: is missing, and vLLM allows 999 items of a kind that is left out"
        for kind in ("audio", "video")
    ]


def test_profile_is_frozen(write: Write, smallest: str) -> None:
    """A loaded profile is immutable."""
    profile = load_profile(write(smallest))
    with pytest.raises(FrozenInstanceError):
        profile.arguments = {}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("max_model_len: 20000", {"max-model-len": 20000}),
        ("max-model-len: 20k", {"max-model-len": 20000}),
        ("max-model-len: 20K", {"max-model-len": 20480}),
        ("max-model-len: 2.5k", {"max-model-len": 2500}),
        ("max-model-len: auto", {"max-model-len": "auto"}),
        ("max-model-len: -1", {"max-model-len": "auto"}),
        ("no-enable-prefix-caching: true", {"enable-prefix-caching": False}),
        ("enable-prefix-caching: False", {"enable-prefix-caching": False}),
        ("gpu-memory-utilization: 1", {"gpu-memory-utilization": 1}),
        ("seed: -5", {"seed": -5}),
        ("mm-processor-cache-gb: 1.0e-5", {"mm-processor-cache-gb": 1e-5}),
        ('code-revision: "2024-01-01"', {"code-revision": "2024-01-01"}),
        ("code-revision: a1b2", {"code-revision": "a1b2"}),
        ("lora-target-modules: q_proj", {"lora-target-modules": ["q_proj"]}),
        ("lora-target-modules: [q_proj, k_proj]", {"lora-target-modules": ["q_proj", "k_proj"]}),
        ("speculative-config: {method: ngram, n: 3}", {"speculative-config": {"method": "ngram", "n": 3}}),
        ("speculative-config: '{\"n\": [1.5]}'", {"speculative-config": {"n": [1.5]}}),
        ("compilation-config:\n  mode: 3", {"compilation-config": {"mode": 3}}),
        ("hf-overrides: {a: {b: true}}", {"hf-overrides": {"a": {"b": True}}}),
        ("hf-overrides: some.function", {"hf-overrides": "some.function"}),
        ("optimization-level: 3", {"optimization-level": 3}),
        ("tensor-parallel-size: 1", {"tensor-parallel-size": 1}),
        ("calculate-kv-scales: false", {"calculate-kv-scales": False}),
        ("aggregate-engine-logging: true", {"aggregate-engine-logging": True}),
        ("chat-template: |\n  {{ a }}\n", {"chat-template": "{{ a }}\n"}),
        ("seed: 1  # a comment\r", {"seed": 1}),
    ],
)
def test_taken(write: Write, smallest: str, line: str, arguments: dict[str, object]) -> None:
    """Unambiguous values that vLLM accepts are accepted and normalised."""
    loaded = load_profile(write(smallest + line + "\n")).arguments
    assert {key: value for key, value in loaded.items() if key not in CONTRACT} == arguments


@pytest.mark.parametrize(
    ("key", "old", "new", "used"),
    [
        ("kv-cache-dtype", "fp8_e4m3", "auto", "auto"),
        ("quantization", "quantization: compressed-tensors\n", "", None),
        ("max-num-seqs", "1024", "256", 256),
        ("limit-mm-per-prompt", "image: 3", "image: 4", {"image": 4, "audio": 0, "video": 0}),
        ("limit-mm-per-prompt", "  audio: 0\n", "", {"image": 3, "video": 0}),
    ],
)
def test_deviation(write: Write, smallest: str, key: str, old: str, new: str, used: object) -> None:
    """A key of the contract in `deviate` may differ or be missing, and is reported."""
    profile = load_profile(write(smallest.replace(old, new)), deviate=[key])
    assert profile.deviations == (Deviation(key, CONTRACT[key], used, "--deviate"),)


def test_deviation_that_is_none(write: Write, smallest: str) -> None:
    """An allowed deviation that the profile does not use is not reported."""
    assert load_profile(write(smallest), deviate=list(CONTRACT)).deviations == ()


def test_deviation_keeps_the_type(refused: Refused, write: Write, smallest: str) -> None:
    """A deviating value must still be one that vLLM accepts."""
    path = write(smallest.replace("1024", "many"))
    assert refused(path, deviate=("max-num-seqs",)) == [
        'profile.yaml:3: error: max-num-seqs: must be a whole number (got "many")'
    ]


def test_deviation_from_nothing(refused: Refused, write: Write, smallest: str) -> None:
    """A deviation from a key outside the contract is an error of the flag, reported with those of the file."""
    assert refused(write(smallest + "seed: x\n"), deviate=("seed", "zeal")) == [
        'profile.yaml:8: error: seed: must be a whole number (got "x")',
        (
            "error: --deviate: is not a key of the contract (got seed); "
            "it can be one of kv-cache-dtype, quantization, limit-mm-per-prompt, max-num-seqs"
        ),
        (
            "error: --deviate: is not a key of the contract (got zeal); "
            "it can be one of kv-cache-dtype, quantization, limit-mm-per-prompt, max-num-seqs"
        ),
    ]


def test_loading_is_fast(root: Path) -> None:
    """After the imports, loading takes milliseconds."""
    start = time.monotonic()
    profile = load_profile(root / "vllm_config.yaml")
    assert time.monotonic() - start < 0.25
    assert isinstance(profile, Profile)
