"""config.json: which model it is, and the parts of it that preflight reads."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servekit.preflight.checkpoint.architectures import KNOWN_ARCHITECTURES
from servekit.preflight.checkpoint.text_config import ARCHITECTURES, TextConfig, TextConfigError, parse_text_config
from servekit.preflight.findings import Finding, error, warning

CONFIG: Final = "config.json"
DTYPE_BYTES: Final[Mapping[str, int]] = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says. `text` is None for other models than Gemma 4 and for a broken text configuration."""

    architecture: str
    text: TextConfig | None
    dtype: str
    vision: Mapping[str, Any] | None = None
    audio: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_config(folder: Path) -> tuple[ModelConfig | None, tuple[Finding, ...]]:
    """Read the folder's config.json; None when there is nothing to go on."""
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        missing = error(
            "config-missing",
            f"{folder} has no {CONFIG}",
            subject=CONFIG,
            remedy="give the folder of a checkpoint",
        )
        return None, (missing,)
    except (OSError, ValueError, RecursionError) as problem:
        return None, (_invalid(f"cannot be read: {problem}"),)
    if not isinstance(raw, dict):
        return None, (_invalid(f"must hold a JSON object, not {type(raw).__name__}"),)
    return _from_object(raw)


def _invalid(message: str) -> Finding:
    return error("config-invalid", message, subject=CONFIG, remedy="download the checkpoint again")


def _from_object(raw: dict[str, Any]) -> tuple[ModelConfig | None, tuple[Finding, ...]]:
    names = raw.get("architectures")
    architecture = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if architecture not in KNOWN_ARCHITECTURES:
        unknown = error(
            "architecture-unknown",
            f"vLLM 0.20.2 has no model {architecture or 'without a name in architectures'!r}",
            subject=CONFIG,
            remedy=f"serve a model of one of its architectures, here {ARCHITECTURES[0]}",
        )
        return None, (unknown,)
    text_object = _section(raw, "text_config") or (raw if "hidden_size" in raw else {})
    dtype = _dtype(raw) or _dtype(text_object) or "bfloat16"
    findings: list[Finding] = []
    text = None
    if architecture not in ARCHITECTURES:
        findings.append(
            warning(
                "architecture-unplanned",
                f"{architecture} is no Gemma 4: its tensors and its memory are not checked",
                subject=CONFIG,
            )
        )
    else:
        try:
            text = parse_text_config(text_object)
        except TextConfigError as problem:
            findings.append(
                error(
                    "text-config-invalid",
                    f"text_config: {problem}",
                    subject=CONFIG,
                    remedy="take the config.json of the original model",
                )
            )
    config = ModelConfig(
        architecture=architecture,
        text=text,
        dtype=dtype,
        vision=_section(raw, "vision_config"),
        audio=_section(raw, "audio_config"),
        quantization=_section(raw, "quantization_config") or _section(raw, "compression_config"),
        raw=raw,
    )
    return config, tuple(findings)


def _section(raw: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    value = raw.get(key)
    return value if isinstance(value, dict) else None


def _dtype(section: Mapping[str, Any]) -> str:
    value = section.get("dtype") or section.get("torch_dtype")
    return value.removeprefix("torch.") if isinstance(value, str) else ""


def check_config(config: ModelConfig, *, max_model_len: int | None, images: int) -> Iterator[Finding]:
    """Find what contradicts the profile or would stop vLLM; `images` is the limit per prompt."""
    text = config.text
    if text and max_model_len and max_model_len > text.max_position_embeddings:
        yield error(
            "context-length",
            f"max-model-len {max_model_len:,} is longer than max_position_embeddings {text.max_position_embeddings:,}",
            subject=CONFIG,
            remedy=f"set max-model-len to {text.max_position_embeddings} or less",
        )
    yield from _check_vision(config, images)
    if text:
        yield from _check_token_ids(config.raw, text)


def _check_vision(config: ModelConfig, images: int) -> Iterator[Finding]:
    if config.architecture != ARCHITECTURES[0]:
        return
    if config.vision is None:
        yield error(
            "vision-config",
            "vision_config is missing: vLLM 0.20.2 builds the vision tower from it",
            subject=CONFIG,
            remedy="take the config.json of the original model",
        )
        return
    length = config.vision.get("default_output_length")
    if type(length) is not int or length < 1:
        # vLLM 0.20.2 reads it unguarded for the number of image tokens (models/gemma4_mm.py)
        yield error(
            "vision-config",
            f"vision_config.default_output_length must be the number of tokens of an image, not {length!r}",
            subject=CONFIG,
            remedy="add it (280 for gemma-4-E4B)",
        )
    if images and type(config.raw.get("image_token_id")) is not int:
        yield error("token-ids", "image_token_id is missing", subject=CONFIG, remedy="take the original config.json")


def _check_token_ids(raw: Mapping[str, Any], text: TextConfig) -> Iterator[Finding]:
    for key in ("image_token_id", "boi_token_id", "eoi_token_id", "audio_token_id", "video_token_id"):
        value = raw.get(key)
        if type(value) is int and not 0 <= value < text.vocab_size:
            yield error(
                "token-ids",
                f"{key} {value} lies outside the vocabulary of {text.vocab_size:,}",
                subject=CONFIG,
                remedy="the configuration and the weights are of different models",
            )
