"""Unusual checkpoints as people publish them: how each is made, its findings, and words of one of them."""

from tests.preflight.damage import (
    ADAPTER,
    LAYER,
    SHARD,
    Damage,
    adapter,
    all_of,
    beside,
    broken_links,
    byte_order_mark,
    config,
    content,
    edit,
    group,
    head,
    pack,
    preprocessor,
    processor,
    quantization,
    second_group,
    shards,
    stored,
    subfolder,
    template,
    text_only,
    unfinished,
    unpack,
    weights,
    with_tensor,
    without_file,
    without_key,
    without_part,
)

OTHER_METHOD = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 128}
ROTATED = [
    {"targets": ["re:.*down_proj$"], "location": "input", "inverse": False, "ignore": []},
    {"targets": ["re:.*down_proj$"], "location": "weight_input", "inverse": True, "ignore": []},
]
CHANNEL = {"strategy": "channel", "group_size": None}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
NOT_W4A16 = "this endpoint serves W4A16"

UNUSUAL: dict[str, tuple[Damage, dict[str, str], str]] = {
    # Accepted: vLLM serves them. Damage, then the findings with their severities, then words of the first message.
    "QAT: groups of 32, gates packed, a stored but tied head, no K/V of shared layers": (
        all_of(
            stored(size=32),
            pack("_input_gate.weight", "per_layer_projection.weight", "model_projection.weight", size=32),
            *(without_part(f".layers.{layer}.self_attn.{name}_proj") for layer in (4, 5) for name in "kv"),
            head(untied=False),
            weights(group_size=32, actorder=None),
            quantization(ignore=["lm_head", "re:.*(tower|embed_vision|embed_audio).*"]),
        ),
        {"quantization-scheme": "warning"},
        "symmetric int4 in groups of 32",
    ),
    "two groups, one for an untied lm_head": (
        all_of(
            head(),
            pack("lm_head.weight"),
            second_group(targets=["re:.*lm_head"]),
            quantization(ignore=["re:.*(tower|embed|per_layer).*"]),
        ),
        {},
        "",
    ),
    "a group for the attention module": (
        second_group(targets=["Gemma4TextAttention"], weights=None, input_activations=FP8 | {"strategy": "tensor"}),
        {},
        "",
    ),
    "zero points": (
        all_of(stored(zero_points=True), weights(symmetric=False)),
        {"quantization-scheme": "warning"},
        "asymmetric int4",
    ),
    "one scale for each output": (
        all_of(stored(size=-1), weights(**CHANNEL, actorder=None)),
        {"quantization-scheme": "warning"},
        "symmetric int4 by channel",
    ),
    "quantization_config in text_config": (
        lambda patient: patient.config(
            lambda raw: raw["text_config"].update(quantization_config=raw.pop("quantization_config"))
        ),
        {},
        "",
    ),
    "compressed_tensors with an underscore": (quantization(quant_method="compressed_tensors"), {}, ""),
    "the newer spelling of the scheme": (
        all_of(
            weights(scale_dtype=None, zp_dtype=None),
            quantization(transform_config={}, sparsity_config={}, global_compression_ratio=None, version="0.15.0.1"),
        ),
        {},
        "",
    ),
    "targets by exact class, part and pattern": (
        group(targets=["RowParallelLinear", "re:.*(q|k|v)_proj$", "re:.*gate_up_proj$"]),
        {},
        "",
    ),
    "formats of the groups": (quantization(format="mixed-precision"), {}, ""),
    "a preprocessor_config.json alone": (preprocessor(), {}, ""),
    "two shards and an index with more metadata": (all_of(shards, without_file(SHARD)), {}, ""),
    "shards and their sum": (shards, {"shard-stray": "warning"}, "vLLM ignores it"),
    "shards with the index of a variant": (
        all_of(
            shards,
            without_file(SHARD),
            lambda patient: (patient.folder / "model.safetensors.index.json").rename(
                patient.folder / "model.bf16.safetensors.index.json"
            ),
        ),
        {},
        "",
    ),
    "a copy in a subfolder": (subfolder("model.safetensors"), {}, ""),
    "an end of turn that is no stop token": (
        all_of(without_file("generation_config.json"), config(eos_token_id=1)),
        {"generation-config": "warning"},
        "does not stop at '<turn|>'",
    ),
    "another model in W4A16": (
        config(architectures=["Gemma3nForConditionalGeneration"], model_type="gemma3n"),
        {"architecture-unplanned": "warning"},
        "preflight checks neither its tensors nor its memory",
    ),
    "a group that no layer uses": (
        all_of(
            quantization(format="X"),
            second_group(
                targets=["re:.*(embed_tokens|vision_tower).*"],
                format="dense",
                input_activations=FP8 | {"strategy": "token", "dynamic": True},
                weights={"num_bits": 2, "group_size": 64, "strategy": "group"},
            ),
        ),
        {},
        "",
    ),
    "flags in the middle of a pattern": (
        quantization(ignore=["lm_head", "re:.*(?i)(TOWER|embed|per_layer).*"]),
        {},
        "",
    ),
    "another model's classes for audio and video": (
        all_of(
            processor("video_processor", "Qwen2VLVideoProcessor"),
            processor("feature_extractor", "WhisperFeatureExtractor"),
        ),
        {},
        "",
    ),
    # Another scheme than this endpoint's
    "integers in a format for activations, though no layer uses them": (
        second_group(targets=["re:.*vision_tower.*"], format="int-quantized"),
        {"quantization-format": "error"},
        "is 'int-quantized', not 'pack-quantized'",
    ),
    "int2 for a part": (
        all_of(
            quantization(format="mixed-precision"),
            group(targets=["re:.*self_attn.*"]),
            second_group(targets=["re:.*mlp.*"], weights={"num_bits": 2, "group_size": 64, "strategy": "group"}),
        ),
        {"quantization-bits": "error"},
        "is int2: vLLM 0.20.2 has kernels for packed int4 and int8 only",
    ),
    "W8A8 in FP8": (
        all_of(
            quantization(format="float-quantized"),
            group(format=None, input_activations=FP8 | {"strategy": "token", "dynamic": True}),
            weights(num_bits=8, type="float", **CHANNEL, actorder=None),
        ),
        {"quantization-bits": "error", "quantization-activations": "error", "quantization-format": "error"},
        f"is float8: {NOT_W4A16}",
    ),
    "NVFP4": (
        all_of(group(format="nvfp4-pack-quantized"), weights(type="float", strategy="tensor_group", group_size=16)),
        {"quantization-bits": "error", "quantization-format": "error"},
        f"is float4: {NOT_W4A16}",
    ),
    "W8A8 in int8": (
        all_of(
            quantization(format="int-quantized"),
            group(format=None, input_activations={"num_bits": 8, "strategy": "token", "dynamic": True}),
            weights(num_bits=8, **CHANNEL, actorder=None),
        ),
        {"quantization-activations": "error", "quantization-format": "error"},
        NOT_W4A16,
    ),
    "2:4 sparse for Marlin": (quantization(format="marlin-24"), {"quantization-format": "error"}, "'marlin-24'"),
    "not packed": (
        all_of(unpack("."), quantization(format="dense"), group(format=None)),
        {"quantization-format": "error"},
        "is 'dense'",
    ),
    "an order of groups without groups": (
        all_of(stored(size=-1), weights(**CHANNEL)),
        {"quantization-groups": "error"},
        "compressed-tensors rejects it: actorder needs strategy group, not channel",
    ),
    "a key that compressed-tensors does not know": (
        weights(bits=4),
        {"quantization-groups": "error"},
        "bits: Extra inputs are not permitted",
    ),
    "MLX": (
        config(quantization={"group_size": 64, "bits": 4}, quantization_config={"group_size": 64, "bits": 4}),
        {"quantization-method": "error"},
        "another tool than compressed-tensors wrote the section",
    ),
    "auto-round": (config(quantization_config=OTHER_METHOD), {"quantization-method": "error"}, "is 'auto-round'"),
    "a scale for each head of the cache": (
        quantization(kv_cache_scheme=FP8 | {"strategy": "attn_head", "dynamic": False}),
        {"kv-cache-scheme": "error"},
        "strategy attn_head needs scales for each head",
    ),
    # Layers and kernels
    "targets of the attention alone": (
        all_of(unpack(".mlp."), group(targets=["re:.*self_attn.[qkvo]_proj$"])),
        {"quantization-targets": "error"},
        "neither quantize nor ignore language_model.model.layers.0.mlp.gate_up_proj",
    ),
    "a tied head quantized": (
        group(targets=["Linear", "re:.*lm_head"]),
        {"quantization-targets": "error"},
        "tied to the embedding",
    ),
    "an embedding quantized": (
        all_of(pack("embed_tokens.weight"), quantization(ignore=["re:.*(tower|embed_vision|embed_audio|per_layer).*"])),
        {"tensor-quantized": "error"},
        "embed_tokens.weight is stored quantized",
    ),
    "zero points in a symmetric scheme": (
        stored(zero_points=True),
        {"tensor-unexpected": "error"},
        "mlp.down_proj.weight_zero_point and 41 more tensors",
    ),
    "a group index in a scheme without": (
        stored(g_idx=True),
        {"tensor-unexpected": "error"},
        "mlp.down_proj.weight_g_idx and 41 more tensors",
    ),
    "a group index that is declared, not stored": (
        weights(actorder="group"),
        {"scale-missing": "error"},
        "without its weight_g_idx",
    ),
    "a bias of the tied head": (
        with_tensor("lm_head.bias", "BF16", [1024], bytes(2048)),
        {"bias-dropped": "error"},
        "vLLM 0.20.2 drops biases",
    ),
    "a bias": (
        with_tensor(f"{LAYER}.0.self_attn.q_proj.bias", "BF16", [512], bytes(1024)),
        {"bias-dropped": "error"},
        "vLLM 0.20.2 drops biases",
    ),
    "an untied head of another shape": (
        head(shape=(1000, 256)),
        {"tensor-shape": "error"},
        "lm_head.weight is BF16 [1000, 256], config.json requires float [1024, 256]",
    ),
    "an untied head that is not stored": (
        config(tie_word_embeddings=False),
        {"tensor-missing": "error"},
        "lm_head is not stored",
    ),
    "a clipped tower without bounds": (
        without_part("mlp.up_proj.input_max"),
        {"tower-missing": "error"},
        "vision_tower.encoder.layers.0.mlp.up_proj.input_max is not stored (and 1 more)",
    ),
    "tower tensors of another name": (
        lambda patient: patient.tensors(
            lambda tensors: tensors.update({f"{name}s": tensors.pop(name) for name in list(tensors) if "patch" in name})
        ),
        {"tower-missing": "error", "tensor-unexpected": "error"},
        "vision_tower.patch_embedder.input_proj.weight is not stored",
    ),
    # Files beside the weights
    "an adapter beside the weights": (
        beside("adapter_model.safetensors", ADAPTER),
        {"tensor-unexpected": "error"},
        "loads every *.safetensors of a folder without an index",
    ),
    "an optimizer beside the weights": (
        beside("optimizer.safetensors", "state.0.exp_avg"),
        {"tensor-unexpected": "error"},
        "holds state.0.exp_avg",
    ),
    "consolidated weights in a subfolder": (
        subfolder("consolidated.safetensors"),
        {"weights-consolidated": "error"},
        "load consolidated*.safetensors of the folder",
    ),
    "no model_type": (without_key("model_type"), {"model-type": "error"}, "is missing"),
    "a model_type of another model": (config(model_type="gemma3"), {"model-type": "error"}, "is not a type of Gemma4"),
    "a newer Gemma 4": (
        config(architectures=["Gemma4UnifiedForConditionalGeneration"], model_type="gemma4_unified"),
        {"architecture-unknown": "error"},
        "vLLM 0.20.2 has no model 'Gemma4UnifiedForConditionalGeneration'",
    ),
    "a byte order mark": (
        byte_order_mark,
        {"config-invalid": "error"},
        "Unexpected UTF-8 BOM",
    ),
    "text only, images promised": (text_only, {"architecture-text-only": "error"}, "takes text only"),
    "no tokenizer_config.json": (
        without_file("tokenizer_config.json"),
        {"tokenizer-config": "error"},
        "Gemma 4 processor reads its image tokens",
    ),
    "an image token that the tokenizer lacks": (
        edit("tokenizer_config.json", lambda each: each["extra_special_tokens"].update(image_token="<picture>")),
        {"token-ids": "error"},
        "is '<picture>', which tokenizer.json does not know",
    ),
    "another id for the begin of an image": (
        config(boi_token_id=13),
        {"token-ids": "error"},
        "must be the id of '<|image>'",
    ),
    "Gemma 3's image processor": (
        preprocessor(image_processor_type="Gemma3ImageProcessor"),
        {"processor-invalid": "error"},
        "is 'Gemma3ImageProcessor', not 'Gemma4ImageProcessor'",
    ),
    "no video processor": (
        edit("processor_config.json", lambda each: each.pop("video_processor")),
        {"processor-missing": "error"},
        "holds no video_processor",
    ),
    "templates without a default": (
        template("x", "tool_use"),
        {"chat-template": "error"},
        "chat_template names 'tool_use', and no 'default'",
    ),
    "a template that is cut": (
        content("chat_template.jinja", b"{% for m in messages %}{{ m['content'] "),
        {"chat-template": "error"},
        "cannot be parsed: unexpected end of template",
    ),
    "a template that drops images": (
        content("chat_template.jinja", b"{% for m in messages %}{{ m['content'] }}{% endfor %}"),
        {"chat-template": "error"},
        "has no place for images",
    ),
    # Paths
    "an adapter's folder": (adapter, {"config-missing": "error"}, "the folder holds an adapter"),
    "links without their blobs": (
        broken_links,
        {"config-missing": "error", "shard-missing": "error"},
        "is a link that points to nothing",
    ),
    "an unfinished download": (unfinished, {"weights-missing": "error"}, "only unfinished downloads"),
}

BY_TARGET: dict[str, tuple[Damage, dict[str, str], dict[str, str]]] = {
    # The findings on a GPU, and on the CPU
    "int8": (
        all_of(stored(bits=8), weights(num_bits=8)),
        {"quantization-scheme": "warning"},
        {"quantization-scheme": "warning", "quantization-kernel": "error"},
    ),
    "int8 with zero points": (
        all_of(stored(bits=8, zero_points=True), weights(num_bits=8, symmetric=False)),
        {"quantization-scheme": "warning", "quantization-kernel": "error"},
        {"quantization-scheme": "warning", "quantization-kernel": "error"},
    ),
    "groups of 16": (
        all_of(stored(size=16), weights(group_size=16)),
        {"quantization-scheme": "warning", "quantization-kernel": "error"},
        {"quantization-scheme": "warning"},
    ),
    "groups of 256": (
        all_of(stored(size=256), weights(group_size=256)),
        {"quantization-scheme": "warning", "quantization-kernel": "error"},
        {"quantization-scheme": "warning"},
    ),
    "rotated activations": (
        quantization(transform_config={"config_groups": {"R4": {"type": "hadamard", "apply": ROTATED}}}),
        {"quantization-transforms": "warning"},
        {"quantization-transforms": "error"},
    ),
    "an FP8 cache": (
        quantization(kv_cache_scheme=FP8 | {"strategy": "tensor", "dynamic": False}),
        {"kv-cache-scheme": "warning"},
        {"kv-cache-scheme": "error"},
    ),
    "a calibrated scale of the cache": (
        with_tensor(f"{LAYER}.2.self_attn.v_scale", "F32", [], bytes(4)),
        {"kv-scales": "error"},
        {"kv-scales": "warning"},
    ),
}
