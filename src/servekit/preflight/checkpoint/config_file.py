"""config.json: the model that it describes, and the parts that preflight reads."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.architectures import KNOWN_ARCHITECTURES
from servekit.preflight.checkpoint.text_config import ARCHITECTURES, TextConfig, parse_text_config
from servekit.preflight.findings import Finding, error, warning

CONFIG: Final = "config.json"
ABSENT: Final = "does not exist"
DTYPE_BYTES: Final[Mapping[str, int]] = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}
_ORIGINAL: Final = "use the config.json of the original model"


@dataclass(frozen=True)
class ModelConfig:
    """What preflight uses of config.json; `text` is None for other models than Gemma 4 and for a broken text_config."""

    architecture: str
    text: TextConfig | None
    dtype: str
    vision: Mapping[str, Any] | None = None
    audio: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_config(folder: Path) -> tuple[ModelConfig | None, list[Finding]]:
    """Read the folder's config.json; None if it does not name a model that vLLM has."""
    raw, problem, line = read_object(folder / CONFIG)
    if problem == ABSENT:
        return None, [error("config-missing", problem, file=CONFIG, remedy="give the folder of a checkpoint")]
    if problem:
        return None, [error("config-invalid", problem, file=CONFIG, line=line, remedy="download the checkpoint again")]
    names = raw.get("architectures")
    architecture = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if architecture not in KNOWN_ARCHITECTURES:
        return None, [
            error(
                "architecture-unknown",
                f"vLLM {ENGINE_VERSION} has no model {architecture!r}" if architecture else "does not name a model",
                file=CONFIG,
                key="architectures",
                remedy=f"serve a model that vLLM supports, such as {ARCHITECTURES[0]}",
            )
        ]
    section = _section(raw, "text_config") or (raw if "hidden_size" in raw else {})
    text, findings = None, []
    try:
        text = parse_text_config(section) if architecture in ARCHITECTURES else None
    except ValueError as reason:
        findings = [error("text-config-invalid", str(reason), file=CONFIG, key="text_config", remedy=_ORIGINAL)]
    if architecture not in ARCHITECTURES:
        findings = [
            warning(
                "architecture-unplanned",
                f"{architecture} is not a Gemma 4 model: preflight checks neither its tensors nor its memory",
                file=CONFIG,
                key="architectures",
            )
        ]
    return ModelConfig(
        architecture=architecture,
        text=text,
        dtype=_dtype(raw) or _dtype(section) or "bfloat16",
        vision=_section(raw, "vision_config"),
        audio=_section(raw, "audio_config"),
        quantization=_section(raw, "quantization_config") or _section(raw, "compression_config"),
        raw=raw,
    ), findings


def read_object(path: Path) -> tuple[dict[str, Any], str, int]:
    """Read the file's JSON object; if that fails, return an empty one, the reason and the line."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, ABSENT, 0
    except (OSError, ValueError, RecursionError) as problem:
        return {}, f"cannot be read: {problem}", getattr(problem, "lineno", 0)
    if isinstance(value, dict):
        return value, "", 0
    return {}, f"must hold a JSON object, not {type(value).__name__}", 1


def _section(raw: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    value = raw.get(key)
    return value if isinstance(value, dict) else None


def _dtype(section: Mapping[str, Any]) -> str:
    value = section.get("dtype") or section.get("torch_dtype")
    return value.removeprefix("torch.") if isinstance(value, str) else ""


def check_context(text: TextConfig, max_model_len: int) -> Iterator[Finding]:
    """Report a context length that is longer than the model's own."""
    longest = text.max_position_embeddings
    if max_model_len > longest:
        yield error(
            "context-length",
            f"must be at most the model's max_position_embeddings {longest:,}",
            key="max-model-len",
            got=f"{max_model_len:,}",
            remedy=f"write {longest} or less",
        )


def check_vision(config: ModelConfig, images: int) -> Iterator[Finding]:
    """Report what vLLM needs for images and does not find; `images` is the limit per prompt."""
    if config.architecture != ARCHITECTURES[0]:
        return
    if config.vision is None:
        yield error(
            "vision-config",
            f"is missing: vLLM {ENGINE_VERSION} builds the vision tower from it",
            file=CONFIG,
            key="vision_config",
            remedy=_ORIGINAL,
        )
        return
    length = config.vision.get("default_output_length")
    if type(length) is not int or length < 1:
        # vLLM 0.20.2 computes the number of image tokens from it, without a check (models/gemma4_mm.py).
        yield error(
            "vision-config",
            "must be the number of tokens of an image",
            file=CONFIG,
            key="vision_config.default_output_length",
            got=repr(length),
            remedy="write 280, as in gemma-4-E4B",
        )
    if images and type(config.raw.get("image_token_id")) is not int:
        yield error("token-ids", "is missing", file=CONFIG, key="image_token_id", remedy=_ORIGINAL)


def check_token_ids(raw: Mapping[str, Any], text: TextConfig) -> Iterator[Finding]:
    """Report special tokens that are outside the vocabulary."""
    for key in ("image_token_id", "boi_token_id", "eoi_token_id", "audio_token_id", "video_token_id"):
        value = raw.get(key)
        if type(value) is int and not 0 <= value < text.vocab_size:
            yield error(
                "token-ids",
                f"is outside the vocabulary of {text.vocab_size:,}",
                file=CONFIG,
                key=key,
                got=str(value),
                remedy="use the configuration and the weights of the same model",
            )
