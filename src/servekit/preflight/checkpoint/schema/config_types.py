"""The JSON types of the fields of config.json.

transformers 5.8 raises StrictDataclassFieldValidationError for any other type while vLLM 0.20.2 starts; it accepts
fields that it does not know (models/gemma4/configuration_gemma4.py, whose classes are @strict). A whole number is no
float there: `rms_norm_eps: 1` ends the start.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, create_model

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import CONFIG, DTYPE_BYTES, FLAT_TYPE, ModelConfig
from servekit.preflight.checkpoint.schema.faults import Strict, faults_of
from servekit.preflight.checkpoint.schema.rope_types import text_rope_faults, vision_rope_faults
from servekit.preflight.checkpoint.text_config import ARCHITECTURES
from servekit.preflight.findings import Finding, error


def _with_point(value: float) -> float:
    if isinstance(value, int):
        raise ValueError("Input should be written with a decimal point")  # noqa: TRY004 - pydantic wants a ValueError
    return value


def _known_dtype(value: object) -> object:
    if isinstance(value, list) or (isinstance(value, str) and value not in _DTYPES):
        raise ValueError(f"Input should be a dtype such as {', '.join(DTYPE_BYTES)}")
    return value


_DTYPES: Final = {*DTYPE_BYTES, "float64", "double"}
_ROPE: Final = {"text_config": text_rope_faults, "vision_config": vision_rope_faults}
_Dtype = Annotated[Any, AfterValidator(_known_dtype)]
_Size = Annotated[int, Field(gt=0)]
_Float = Annotated[int | float, AfterValidator(_with_point)]
_Table = Mapping[Any, str]
"""Types, and the names of the fields that have them."""
_EVERY: Final[_Table] = {
    str | None: "transformers_version",
    list[str] | None: "architectures",
    _Dtype: "dtype",
    bool | None: "output_hidden_states return_dict",
    bool: "is_encoder_decoder",
    int: "chunk_size_feed_forward",
    dict[str, str] | None: "id2label",
    dict[str, int] | None: "label2id",
    Literal["regression", "single_label_classification", "multi_label_classification"] | None: "problem_type",
}
_FIELDS: Final[Mapping[str, _Table]] = {
    "": {
        int | None: "boi_token_id eoi_token_id image_token_id video_token_id boa_token_id eoa_token_index "
        "audio_token_id",
        _Float | None: "initializer_range",
        bool: "tie_word_embeddings",
        dict[str, Any] | None: "text_config vision_config audio_config",
    },
    "text_config": {
        int: "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "head_dim max_position_embeddings sliding_window vocab_size_per_layer_input hidden_size_per_layer_input "
        "global_head_dim num_kv_shared_layers",
        int | None: "pad_token_id bos_token_id num_global_key_value_heads num_experts top_k_experts "
        "moe_intermediate_size",
        int | list[int] | None: "eos_token_id",
        _Float: "initializer_range rms_norm_eps",
        _Float | None: "final_logit_softcapping",
        float | None: "attention_dropout",
        bool: "use_cache tie_word_embeddings attention_bias attention_k_eq_v enable_moe_block use_double_wide_mlp",
        str: "hidden_activation",
        dict[str, Any] | None: "rope_parameters",
        list[str] | None: "layer_types",
        Literal["all", "vision"] | None: "use_bidirectional_attention",
    },
    "vision_config": {
        _Size: "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "max_position_embeddings pooling_kernel_size patch_size position_embedding_size",
        _Float: "rms_norm_eps initializer_range",
        _Float | None: "attention_dropout",
        bool: "use_clipped_linears standardize",
        bool | None: "attention_bias",
        str: "hidden_activation",
        dict[str, Any] | None: "rope_parameters",
    },
    "audio_config": {
        _Size: "hidden_size num_hidden_layers num_attention_heads conv_kernel_size output_proj_dims",
        int: "attention_chunk_size attention_context_left attention_context_right",
        _Float: "residual_weight attention_logit_cap attention_invalid_logits_value rms_norm_eps gradient_clipping "
        "initializer_range",
        bool: "use_clipped_linears",
        str: "hidden_act",
        list[int]: "subsampling_conv_channels",
    },
}


def check_types(config: ModelConfig) -> Iterator[Finding]:
    """Report fields of a type that transformers rejects, in the config.json of a Gemma 4."""
    if config.architecture not in ARCHITECTURES:
        return
    flat = config.raw.get("model_type") == FLAT_TYPE
    for section in _FIELDS:
        values = config.raw if flat or not section else config.raw.get(section)
        if not isinstance(values, dict) or (flat and section != "text_config"):
            continue  # a section of another type is a fault of the whole
        if section == "text_config" and config.text is None:
            continue  # already reported as text-config-invalid
        faults = _type_faults(values, section) | dict(_ROPE[section](values) if section in _ROPE else ())
        for name, message in faults.items():
            yield error(
                "config-type",
                f"{message}: vLLM {ENGINE_VERSION} rejects config.json",
                file=CONFIG,
                key=name if flat else f"{section}.{name}".lstrip("."),
                got=json.dumps(values[name]) if name in values else "",
                remedy="use the config.json of the original model",
            )


def _type_faults(values: Mapping[str, Any], section: str) -> dict[str, str]:
    return {key.partition(".")[0]: why for key, why in faults_of(_model(section), values).items()}


@cache
def _model(section: str) -> type[Strict]:
    fields: dict[str, Any] = {
        name: (kind, None)
        for table in (_EVERY, _FIELDS[section])
        for kind, names in table.items()
        for name in names.split()
    }
    return create_model("Section", __base__=Strict, **fields)
