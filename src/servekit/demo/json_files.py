"""The JSON files of a Gemma 4 checkpoint beside its weights and its tokenizer, and the chat template.

Keys as transformers 5.8 writes them; those it would fill with its own defaults are given where vLLM 0.20.2 or
a memory plan reads them from the file.
"""

from importlib import resources

from servekit.demo.sizes import Audio, Gemma4, Text, Vision
from servekit.demo.tensor_list import GROUP_SIZE

CHAT_TEMPLATE = (resources.files(__package__) / "chat_template.jinja").read_text(encoding="utf-8")

DTYPE = "bfloat16"

NOT_QUANTIZED = [
    "lm_head",
    "re:.*vision_tower.*",
    "re:.*audio_tower.*",
    "re:.*embed_vision.*",
    "re:.*embed_audio.*",
    "re:.*per_layer.*",
    "re:.*embed_tokens.*",
]
"""The linear layers left at full precision: all but the decoder's attention and MLP."""

TOKEN_ROLES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}

MODEL_TOKEN_ROLES = {
    "boi_token": "<|image>",
    "image_token": "<|image|>",
    "eoi_token": "<image|>",
    "boa_token": "<|audio>",
    "audio_token": "<|audio|>",
    "eoa_token": "<audio|>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "think_token": "<|think|>",
}


def model_config(model: Gemma4, special: dict[str, int], *, quantized: bool) -> dict[str, object]:
    """Return the content of `config.json`; `special` has the ids of the special tokens."""
    config: dict[str, object] = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "dtype": DTYPE,
        # Without it transformers takes a large vocabulary for an old Mistral one, and warns about its rules.
        "transformers_version": "5.8.0",
        "tie_word_embeddings": True,
        "boi_token_id": special["<|image>"],
        "image_token_id": special["<|image|>"],
        "eoi_token_id": special["<image|>"],
        "boa_token_id": special["<|audio>"],
        "audio_token_id": special["<|audio|>"],
        "eoa_token_id": special["<audio|>"],
        "eoa_token_index": special["<audio|>"],
        "video_token_id": special["<|video|>"],
        "eos_token_id": _ends(special),
        "vision_soft_tokens_per_image": model.vision.soft_tokens,
        "text_config": _text_config(model.text, special),
        "vision_config": _vision_config(model.vision),
        "audio_config": _audio_config(model.audio),
    }
    if quantized:
        config["quantization_config"] = _quantization_config()
    return config


def generation_config(special: dict[str, int]) -> dict[str, object]:
    """Return the content of `generation_config.json`: the sampling Google recommends."""
    return {
        "bos_token_id": special["<bos>"],
        "eos_token_id": _ends(special),
        "pad_token_id": special["<pad>"],
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
    }


def tokenizer_config(text: Text) -> dict[str, object]:
    """Return the content of `tokenizer_config.json`."""
    return {
        # Not GemmaTokenizer: that class takes only the vocabulary from tokenizer.json and makes its own rules.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Gemma4Processor",
        "model_max_length": text.max_positions,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        **TOKEN_ROLES,
        **MODEL_TOKEN_ROLES,
        "extra_special_tokens": MODEL_TOKEN_ROLES,
    }


def processor_config(vision: Vision) -> dict[str, object]:
    """Return the content of `processor_config.json`."""
    pixels = {
        "patch_size": vision.patch,
        "pooling_kernel_size": vision.pooling,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    return {
        "processor_class": "Gemma4Processor",
        "image_seq_length": vision.soft_tokens,
        "audio_seq_length": 750,
        "audio_ms_per_token": 40,
        "image_processor": {
            "image_processor_type": "Gemma4ImageProcessor",
            "max_soft_tokens": vision.soft_tokens,
            "do_normalize": False,
            **pixels,
        },
        "video_processor": {
            "video_processor_type": "Gemma4VideoProcessor",
            "max_soft_tokens": 70,
            "num_frames": 32,
            **pixels,
        },
        "feature_extractor": {
            "feature_extractor_type": "Gemma4AudioFeatureExtractor",
            "sampling_rate": 16_000,
        },
    }


def _ends(special: dict[str, int]) -> list[int]:
    return [special["<eos>"], special["<turn|>"], special["<|tool_response>"]]


def _text_config(text: Text, special: dict[str, int]) -> dict[str, object]:
    return {
        "model_type": "gemma4_text",
        "dtype": DTYPE,
        "vocab_size": text.vocabulary,
        "vocab_size_per_layer_input": text.vocabulary,
        "hidden_size": text.hidden,
        "hidden_size_per_layer_input": text.per_layer_input,
        "intermediate_size": text.intermediate,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "num_kv_shared_layers": text.kv_shared_layers,
        "head_dim": text.head_dim,
        "global_head_dim": text.global_head_dim,
        "layer_types": list(text.layer_types),
        "sliding_window": text.sliding_window,
        "max_position_embeddings": text.max_positions,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "use_double_wide_mlp": False,
        "tie_word_embeddings": True,
        "bos_token_id": special["<bos>"],
        "eos_token_id": special["<eos>"],
        "pad_token_id": special["<pad>"],
    }


def _vision_config(vision: Vision) -> dict[str, object]:
    return {
        "model_type": "gemma4_vision",
        "dtype": DTYPE,
        "hidden_size": vision.hidden,
        "intermediate_size": vision.intermediate,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "num_key_value_heads": vision.heads,
        "head_dim": vision.head_dim,
        "patch_size": vision.patch,
        "pooling_kernel_size": vision.pooling,
        "position_embedding_size": vision.positions,
        "default_output_length": vision.soft_tokens,
        "use_clipped_linears": True,
        "standardize": False,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }


def _audio_config(audio: Audio) -> dict[str, object]:
    return {
        "model_type": "gemma4_audio",
        "dtype": DTYPE,
        "hidden_size": audio.hidden,
        "num_hidden_layers": audio.layers,
        "num_attention_heads": audio.heads,
        "output_proj_dims": audio.output,
        "conv_kernel_size": audio.convolution,
        "subsampling_conv_channels": list(audio.channels),
        "use_clipped_linears": True,
        "rms_norm_eps": 1e-6,
    }


def _quantization_config() -> dict[str, object]:
    """W4A16, as llm-compressor records it; static activation ordering leaves no trace in the tensors."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP_SIZE,
        "actorder": "static",
        "dynamic": False,
        "observer": "minmax",
        "observer_kwargs": {},
        "block_structure": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": NOT_QUANTIZED,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
                "weights": weights,
            }
        },
    }
