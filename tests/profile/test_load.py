"""What `load_profile` accepts, and what it returns."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from servekit.profile import CONTRACT, Deviation, load_profile, resolve

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


def test_limits_may_say_the_size_of_what_the_start_rehearses(write: Write, smallest: str) -> None:
    """A count with a width and a height meets the contract, reaches vLLM whole, and counts as its number of items."""
    sized = {"count": 3, "width": 1024, "height": 1024}
    profile = load_profile(write(smallest.replace("image: 3", f"image: {sized}".replace("'", ""))))
    assert profile.arguments["limit-mm-per-prompt"] == {"image": sized, "audio": 0, "video": 0}
    assert profile.deviations == ()
    arguments = resolve(profile.arguments, target="cuda")
    assert arguments.limit_mm_per_prompt == {"image": 3, "audio": 0, "video": 0}
    assert arguments.contract["limit-mm-per-prompt"] == {"image": 3, "audio": 0, "video": 0}
    four = load_profile(write(smallest.replace("image: 3", "image: {count: 4}")), deviate=["limit-mm-per-prompt"])
    assert four.deviations[0].used == {"image": 4, "audio": 0, "video": 0}


def test_settings_without_effect_are_notes(write: Write, smallest: str) -> None:
    """A setting that the guard makes dead is accepted with a note at its line; switched off, it needs none."""
    dead = "enable-server-load-tracking: true\nenable-sleep-mode: true\nenable-request-id-headers: true\n"
    more = "h11-max-header-count: 64\nmax-log-len: 100\nprofiler-config: {profiler: torch}\n"
    notes = load_profile(write(smallest + dead + more)).notes
    assert [(note.line, str(note.severity)) for note in notes] == [(line, "note") for line in range(8, 14)]
    assert str(notes[0]) == (
        "profile.yaml:8: note: enable-server-load-tracking: has no effect: the guard answers 404 on /load, "
        "which would show it; see servekit's metrics"
    )
    assert load_profile(write(smallest + dead.replace("true", "false"))).notes == ()


def test_text_only_profiles_may_draft(write: Write, smallest: str) -> None:
    """A draft model is refused only beside images: vLLM runs one where every modality is closed."""
    draft = "speculative-config: {model: /models/small, num_speculative_tokens: 2}\n"
    path = write(smallest.replace("image: 3", "image: 0") + draft)
    assert "speculative-config" in load_profile(path, deviate=["limit-mm-per-prompt"]).arguments


def test_a_plugin_may_bring_names(write: Write, smallest: str) -> None:
    """With a plugin, a parser may have a name that vLLM does not know."""
    Path(write("").with_name("parsers.py")).write_text("")
    line = "{0}-parser-plugin: parsers.py\n{1}-parser: own\n"
    loaded = load_profile(write(smallest + line.format("tool", "tool-call") + line.format("reasoning", "reasoning")))
    assert loaded.arguments["tool-call-parser"] == loaded.arguments["reasoning-parser"] == "own"


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
        (
            "speculative-config: {method: ngram, num_speculative_tokens: 3}",
            {"speculative-config": {"method": "ngram", "num_speculative_tokens": 3}},
        ),
        (
            """speculative-config: '{"model": "a/b-EAGLE3", "num_speculative_tokens": 2}'""",
            {"speculative-config": {"model": "a/b-EAGLE3", "num_speculative_tokens": 2}},
        ),
        (
            """compilation-config: '{"pass_config": {"fuse_allreduce_rms": true}, "compile_sizes": [1.5]}'""",
            {"compilation-config": {"pass_config": {"fuse_allreduce_rms": True}, "compile_sizes": [1.5]}},
        ),
        ("max-num-batched-tokens: 16K", {"max-num-batched-tokens": 16384}),
        (
            "tool-call-parser: gemma4\nenable-auto-tool-choice: true\nreasoning-parser: gemma4",
            {"tool-call-parser": "gemma4", "enable-auto-tool-choice": True, "reasoning-parser": "gemma4"},
        ),
        ("chat-template: template_chatml.jinja", {"chat-template": "template_chatml.jinja"}),
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
