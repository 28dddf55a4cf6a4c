"""The zoo of broken checkpoints: each damage has its own finding, and none raises a traceback."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servekit.profile import EngineArguments, resolve
from tests.preflight.damage import (
    INDEX,
    LAYER,
    SHARD,
    Damage,
    all_of,
    content,
    cut,
    edit,
    first_entry,
    group,
    header,
    indexed,
    plain_instead_of_packed,
    quantization,
    several_shards,
    text,
    weights,
    with_tensor,
    without_file,
    without_key,
    without_part,
    without_tensor,
)

BF16_TWO = struct.pack("<f", 2.0)[2:]

ZOO: dict[str, tuple[Damage, list[str]]] = {
    # config.json
    "no config.json": (without_file("config.json"), ["config-missing"]),
    "config.json is cut": (content("config.json", b'{"architectures": ['), ["config-invalid"]),
    "config.json is a list": (content("config.json", b"[]"), ["config-invalid"]),
    "config.json is nested too deep": (content("config.json", b"[" * 100_000), ["config-invalid"]),
    "config.json is no UTF-8": (content("config.json", b'{"a": "\xff\xfe"}'), ["config-invalid"]),
    "unknown architecture": (
        lambda patient: patient.config(lambda config: config.update(architectures=["Gemma9ForAll"])),
        ["architecture-unknown"],
    ),
    "no architecture": (without_key("architectures"), ["architecture-unknown"]),
    "no hidden size": (without_key("text_config", "hidden_size"), ["text-config-invalid"]),
    "sizes are strings": (text(num_hidden_layers="six"), ["text-config-invalid"]),
    "billions of layers": (text(num_hidden_layers=2**31, layer_types=None), ["text-config-invalid"]),
    "billions of tower layers": (
        lambda patient: patient.config(lambda config: config["vision_config"].update(num_hidden_layers=2**31)),
        ["vision-config"],
    ),
    "too few layer types": (text(layer_types=["full_attention"]), ["text-config-invalid"]),
    "every layer shares the cache": (text(num_kv_shared_layers=6), ["text-config-invalid"]),
    "context shorter than max-model-len": (text(max_position_embeddings=8192), ["context-length"]),
    "no image length": (without_key("vision_config", "default_output_length"), ["vision-config"]),
    "no vision_config": (without_key("vision_config"), ["vision-config"]),
    # quantization_config
    "not quantized at all": (without_key("quantization_config"), ["quantization-missing", "tensor-quantized"]),
    "quantized by AWQ": (quantization(quant_method="awq"), ["quantization-method"]),
    "format not packed": (all_of(quantization(format="int-quantized"), group(format=None)), ["quantization-format"]),
    "no config_groups": (quantization(config_groups={}), ["quantization-groups"]),
    "config_groups is a list": (quantization(config_groups=["group_0"]), ["quantization-groups"]),
    "int3": (weights(num_bits=3), ["quantization-bits"]),
    "no group size": (weights(group_size=None), ["quantization-groups"]),
    "groups of 64": (weights(group_size=64), ["tensor-shape", "quantization-scheme"]),
    "asymmetric": (weights(symmetric=False), ["scale-missing", "quantization-scheme"]),
    "no bits": (weights(num_bits=False), ["quantization-bits"]),
    "4-bit floats": (weights(type="float"), ["quantization-bits"]),
    "sparsity of another form": (quantization(sparsity_config={"format": 1}), ["sparsity"]),
    "transforms of another form": (quantization(transform_config={"a": 1}), ["quantization-transforms"]),
    "2:4 sparse": (quantization(sparsity_config={"format": "sparse-24-bitmask"}), ["sparsity"]),
    "no ignore list": (quantization(ignore=[]), ["tensor-unquantized", "ignore-list"]),
    "ignore list splits qkv": (
        lambda patient: patient.config(
            lambda config: config["quantization_config"]["ignore"].append(f"{LAYER}.1.self_attn.q_proj")
        ),
        ["ignore-split"],
    ),
    "bad pattern in the ignore list": (
        lambda patient: patient.config(lambda config: config["quantization_config"]["ignore"].append("re:(")),
        ["quantization-pattern"],
    ),
    # KV cache scales
    "calibrated KV scales": (
        with_tensor(f"{LAYER}.0.self_attn.k_scale", "BF16", [1], BF16_TWO),
        ["kv-scales"],
    ),
    "per-head KV scales": (
        with_tensor(f"{LAYER}.0.self_attn.v_scale", "BF16", [2], BF16_TWO * 2),
        ["kv-scales"],
    ),
    "kv_cache_scheme of int8": (quantization(kv_cache_scheme={"type": "int", "num_bits": 8}), ["kv-cache-scheme"]),
    # weight files
    "no weights": (without_file(SHARD), ["weights-missing"]),
    "pickled weights only": (
        lambda patient: (patient.folder / SHARD).rename(patient.folder / "pytorch_model.bin"),
        ["weights-pickle"],
    ),
    "a consolidated file": (
        lambda patient: (patient.folder / SHARD).rename(patient.folder / "consolidated.safetensors"),
        ["weights-consolidated"],
    ),
    "empty shard": (content(SHARD, b""), ["shard-empty"]),
    "shard of 5 bytes": (cut(5), ["shard-truncated"]),
    "download stopped in the header": (cut(1000), ["shard-truncated"]),
    "download stopped in the data": (cut(1_000_000), ["shard-truncated"]),
    "more bytes than the header": (
        lambda patient: content(SHARD, (patient.folder / SHARD).read_bytes() + b"\0")(patient),
        ["shard-oversized"],
    ),
    "Git LFS pointer": (
        content(SHARD, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ["shard-pointer"],
    ),
    "an error page instead of weights": (content(SHARD, b"<!DOCTYPE html><html>" * 9), ["shard-header"]),
    "header is no JSON": (content(SHARD, (4).to_bytes(8, "little") + b"\xff{}}"), ["shard-header"]),
    "header is a list": (content(SHARD, (2).to_bytes(8, "little") + b"[]"), ["shard-header"]),
    "unknown dtype": (first_entry(dtype="COMPLEX"), ["shard-header"]),
    "negative offsets": (first_entry(data_offsets=[-8, 0]), ["shard-header"]),
    "shape and offsets disagree": (first_entry(shape=[1, 2, 3]), ["shard-header"]),
    "entry without offsets": (header(lambda entries: entries.update(odd={"dtype": "BF16"})), ["shard-header"]),
    "hole in the data": (
        header(lambda entries: entries.pop(sorted(key for key in entries if key.startswith("model."))[3])),
        ["shard-header"],
    ),
    "shard is a broken link": (
        lambda patient: (without_file(SHARD)(patient), (patient.folder / SHARD).symlink_to("gone")),
        ["shard-missing"],
    ),
    "index names a missing shard": (indexed(lambda names: names.update(more="model-2.safetensors")), ["shard-missing"]),
    "index is cut": (content(INDEX, b'{"weight_map": {'), ["index-invalid"]),
    "index climbs out of the folder": (content(INDEX, b'{"weight_map": {"a": "../b"}}'), ["index-invalid"]),
    "index is of another version": (indexed(lambda names: names.update(gone=SHARD)), ["index-stale"]),
    "a tensor in two shards": (several_shards, ["tensor-duplicate"]),
    "stray shard": (
        lambda patient: (several_shards(patient), indexed(lambda _: None)(patient)),
        ["shard-stray"],
    ),
    # tensors
    "no norm": (without_tensor("model.language_model.norm.weight"), ["tensor-missing"]),
    "a layer lost": (without_part(".layers.3.mlp."), ["tensor-missing"]),
    "no scales": (without_tensor(f"{LAYER}.2.mlp.up_proj.weight_scale"), ["scale-missing"]),
    "a layer not quantized": (plain_instead_of_packed, ["tensor-unquantized"]),
    "another hidden size": (text(hidden_size=512), ["tensor-shape"]),
    "fewer layers than stored": (
        text(num_hidden_layers=5, layer_types=["sliding_attention"] * 4 + ["full_attention"], num_kv_shared_layers=0),
        ["tensor-shape", "tensor-unexpected"],
    ),
    "tensors of another model": (
        with_tensor("model.language_model.extra", "BF16", [1], b"\0\0"),
        ["tensor-unexpected"],
    ),
    "no vision tower": (without_part("vision_tower"), ["tower-missing"]),
    "half a vision tower": (without_part("vision_tower.encoder.layers.1."), ["tower-missing"]),
    "no image projector": (without_part("embed_vision"), ["tower-missing"]),
    "a quantized tower": (
        with_tensor("model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight_packed", "I32", [1], bytes(4)),
        ["tensor-quantized"],
    ),
    # files beside the weights
    "no tokenizer": (without_file("tokenizer.json"), ["tokenizer-missing"]),
    "tokenizer is cut": (content("tokenizer.json", b'{"model": '), ["tokenizer-invalid"]),
    "tokenizer without a vocabulary": (content("tokenizer.json", b'{"model": {}}'), ["tokenizer-invalid"]),
    "tokenizer of another model": (
        content("tokenizer.json", b'{"model": {"vocab": {"a": 262143}, "merges": []}}'),
        ["tokenizer-vocabulary", "token-ids"],
    ),
    "no tokenizer_config.json": (without_file("tokenizer_config.json"), ["tokenizer-config"]),
    "no processor": (without_file("processor_config.json"), ["processor-missing"]),
    "processor class is a list": (
        edit("processor_config.json", lambda processor: processor.update(processor_class=["Gemma4Processor"])),
        ["processor-invalid"],
    ),
    "processor class is an empty list": (
        edit("processor_config.json", lambda processor: processor.update(processor_class=[])),
        [],
    ),
    "class of a processor's part is a list": (
        edit("processor_config.json", lambda processor: processor["video_processor"].update(video_processor_type=[])),
        ["processor-invalid"],
    ),
    "eos_token_id is an object": (
        content("generation_config.json", b'{"eos_token_id": {"a": 1}}'),
        ["generation-config"],
    ),
    "generation_config.json is a list": (content("generation_config.json", b"[]"), ["generation-config"]),
    "processor is cut": (content("processor_config.json", b"{"), ["processor-invalid"]),
    "another number of image tokens": (
        lambda patient: patient.edit(
            "processor_config.json", lambda processor: processor["image_processor"].update(max_soft_tokens=560)
        ),
        ["processor-invalid"],
    ),
    "no chat template": (without_file("chat_template.jinja"), ["chat-template"]),
    "empty chat template": (content("chat_template.jinja", b""), ["chat-template"]),
}


@pytest.mark.parametrize("damage", ZOO)
def test_each_damage_has_its_own_finding(damage: str, patient: Any) -> None:
    """A damaged checkpoint gets exactly the findings that are listed for its damage."""
    harm, expected = ZOO[damage]
    harm(patient)
    assert patient.names() == expected


def test_zoo_is_large() -> None:
    """The zoo covers at least twenty different findings."""
    assert len({names[0] for _, names in ZOO.values() if names}) >= 20


def test_whole_checkpoints_have_no_findings(patient: Any, demo_bf16: Path) -> None:
    """The intact demo checkpoints, quantized and not, have no findings."""
    assert patient.names() == []
    patient.folder = demo_bf16
    assert patient.names(arguments=resolve({"max-model-len": 20_000}, target="cuda")) == []


def test_dropped_projections_stop_an_unquantized_checkpoint(patient_bf16: Any) -> None:
    """An unquantized checkpoint saved by transformers 5.8 lacks projections that vLLM requires."""
    without_tensor(f"{LAYER}.5.self_attn.k_proj.weight")(patient_bf16)
    assert patient_bf16.names(arguments=resolve({}, target="cuda")) == ["kv-shared-weights"]


def test_dropped_projections_are_harmless_when_quantized(patient: Any) -> None:
    """vLLM does not require the unused projections of KV-shared layers in a quantized checkpoint."""
    without_part(".layers.5.self_attn.k_proj.")(patient)
    without_part(".layers.5.self_attn.v_proj.")(patient)
    assert patient.names() == []


def test_unit_scales_are_only_noted(patient: Any) -> None:
    """Stored KV scales of 1.0 have no effect and are only a note."""
    with_tensor(f"{LAYER}.0.self_attn.k_scale", "F32", [], struct.pack("<f", 1.0))(patient)
    _, findings = patient.inspect()
    assert [finding.name for finding in findings] == ["kv-scales-unit"]


@pytest.mark.parametrize(("shape", "expected"), [([1], []), ([2], ["kv-scales"])])
def test_calibrated_scales_are_sound_without_shared_layers(patient: Any, shape: list[int], expected: list[str]) -> None:
    """Calibrated KV scales are wrong only if layers share a cache, or if there are several for a layer."""
    text(num_kv_shared_layers=0)(patient)
    with_tensor(f"{LAYER}.0.self_attn.k_scale", "BF16", shape, BF16_TWO * shape[0])(patient)
    assert patient.names() == expected


def test_scales_have_no_effect_without_quantization(patient_bf16: Any) -> None:
    """vLLM does not load the KV scales of an unquantized checkpoint: every layer uses 1.0."""
    with_tensor(f"{LAYER}.0.self_attn.k_scale", "BF16", [1], BF16_TWO)(patient_bf16)
    assert patient_bf16.names(arguments=resolve({}, target="cuda")) == []


@pytest.mark.parametrize(("target", "severity"), [("cuda", "warning"), ("cpu", "error")])
def test_declared_cache_format_weighs_by_target(patient: Any, target: str, severity: str) -> None:
    """A declared FP8 cache overrides the profile on CUDA and stops the CPU engine, which has none."""
    scheme = {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "tensor"}
    quantization(kv_cache_scheme=scheme)(patient)
    _, findings = patient.inspect(target=target)
    assert [(finding.name, str(finding.severity)) for finding in findings] == [("kv-cache-scheme", severity)]


def test_text_only_model_cannot_keep_a_promise_of_images(patient: Any, arguments: EngineArguments) -> None:
    """If the profile allows images, a text-only model is an error before the start."""
    patient.config(lambda config: config.update(architectures=["Gemma4ForCausalLM"]))
    assert "architecture-text-only" in patient.names()
    none = replace(arguments, limit_mm_per_prompt={"image": 0, "audio": 0, "video": 0})
    assert "architecture-text-only" not in patient.names(arguments=none)


def test_text_only_profile_needs_no_images(patient: Any, arguments: EngineArguments) -> None:
    """Without images the tower is not required, nor the length of an image."""
    without_part("vision_tower")(patient)
    without_key("vision_config", "default_output_length")(patient)
    none = replace(arguments, limit_mm_per_prompt={"image": 0, "audio": 0, "video": 0})
    assert patient.names(arguments=none) == []


def test_template_of_the_profile_stands_in(patient: Any, arguments: EngineArguments) -> None:
    """A chat template named by the profile replaces the checkpoint's."""
    without_file("chat_template.jinja")(patient)
    assert patient.names(arguments=replace(arguments, chat_template="mine.jinja")) == []


def test_every_finding_tells_what_to_do(patient: Any) -> None:
    """An error has a remedy and names its file."""
    cut(1000)(patient)
    _, (finding, *_) = patient.inspect()
    assert finding.remedy
    assert finding.file == str(patient.folder / SHARD)
    assert str(finding).startswith(f"{finding.file}: error: ")
    assert str(finding).endswith("[shard-truncated]")
