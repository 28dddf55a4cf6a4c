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
NO_OBJECT: Final = "must hold a JSON object"
BROKEN_LINK: Final = "is a link that points to nothing"
WITH_BLOBS: Final = "a snapshot links to the cache's blobs: mount or copy the whole cache, or the files themselves"
DTYPE_BYTES: Final[Mapping[str, int]] = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}
FLAT_TYPE: Final = "gemma4_text"
MODEL_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    ARCHITECTURES[0]: ("gemma4",),
    ARCHITECTURES[1]: (FLAT_TYPE, "gemma4"),
}
"""The `model_type` that vLLM's processor and model of an architecture take."""
_GEMMA4_TYPES: Final = {kind for kinds in MODEL_TYPES.values() for kind in kinds}
_QUANTIZATION: Final = (
    "quantization_config",
    "compression_config",
    "text_config.quantization_config",
    "text_config.compression_config",
)
"""Where vLLM looks for the quantization, in this order (model_arch_config_convertor.py)."""
_DTYPES: Final = (*DTYPE_BYTES, "float64", "double")
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
    quantization_key: str = "quantization_config"
    """Where `quantization` is, dotted."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def text_only(self) -> bool:
        """Whether it is a Gemma 4 without towers."""
        return self.architecture == ARCHITECTURES[1]


def read_config(folder: Path) -> tuple[ModelConfig | None, list[Finding]]:
    """Read the folder's config.json; None if it does not name a model that vLLM has."""
    raw, problem, line = read_object(folder / CONFIG)
    if problem == ABSENT:
        return None, [_no_config(folder)]
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
    kind = raw.get("model_type")
    kinds = MODEL_TYPES.get(architecture, ())
    if not isinstance(kind, str) or (kind not in kinds and (kinds or kind in _GEMMA4_TYPES)):
        return None, [
            error(
                "model-type",
                "is missing: vLLM reads config.json by it" if kind is None else f"is not a type of {architecture}",
                file=CONFIG,
                key="model_type",
                got="" if kind is None else repr(kind),
                remedy=f"write {kinds[0]}" if kinds else _ORIGINAL,
            )
        ]
    section = raw if kind == FLAT_TYPE else _section(raw, "text_config") or {}
    if architecture == ARCHITECTURES[0]:  # the flag of the whole model counts: vLLM 0.20.2, config/vllm.py
        section = {**section, "tie_word_embeddings": raw.get("tie_word_embeddings", True)}
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
    if isinstance(value := raw.get("torch_dtype"), str) and _dtype({"dtype": value}) not in _DTYPES:  # others fall back
        message = "is not a type of torch"
        findings.append(
            error("config-invalid", message, file=CONFIG, key="torch_dtype", got=repr(value), remedy=_ORIGINAL)
        )
    quantization_key = next((key for key in _QUANTIZATION if _at(raw, key)), _QUANTIZATION[0])
    return ModelConfig(
        architecture=architecture,
        text=text,
        dtype=_dtype(raw) or _dtype(section) or "bfloat16",
        vision=_section(raw, "vision_config"),
        audio=_section(raw, "audio_config"),
        quantization=_at(raw, quantization_key),
        quantization_key=quantization_key,
        raw=raw,
    ), findings


def _no_config(folder: Path) -> Finding:
    adapter, problem, _ = read_object(folder / "adapter_config.json")
    if not problem:
        base = adapter.get("base_model_name_or_path", "its base model")
        message = "does not exist: the folder holds an adapter (adapter_config.json), not a model"
        return error("config-missing", message, file=CONFIG, remedy=f"give the folder of {base}")
    if (folder / CONFIG).is_symlink():
        return error("config-missing", BROKEN_LINK, file=CONFIG, remedy=WITH_BLOBS)
    inner = min(folder.glob(f"*/{CONFIG}"), default=None)
    such = f", such as {inner.parent}" if inner else ""
    return error("config-missing", ABSENT, file=CONFIG, remedy=f"give the folder of a checkpoint{such}")


def read_object(path: Path) -> tuple[dict[str, Any], str, int]:
    """Read the file's JSON object; if that fails, return an empty one, the reason and the line."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))  # as transformers reads it: a BOM is an error there too
    except FileNotFoundError:
        return {}, ABSENT, 0
    except (OSError, ValueError, RecursionError) as problem:
        return {}, f"cannot be read: {problem}", getattr(problem, "lineno", 0)
    if isinstance(value, dict):
        return value, "", 0
    return {}, f"{NO_OBJECT}, not {type(value).__name__}", 1


def _section(raw: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    value = raw.get(key)
    return value if isinstance(value, dict) else None


def _at(raw: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Return the section at a dotted key."""
    outer, _, inner = key.rpartition(".")
    return _section(_section(raw, outer) or {} if outer else raw, inner)


def _dtype(section: Mapping[str, Any]) -> str:
    value = section.get("dtype") or section.get("torch_dtype")
    return value.removeprefix("torch.") if isinstance(value, str) else ""


def check_context(text: TextConfig, max_model_len: int | str | None) -> Iterator[Finding]:
    """Report a context length that is longer than the model's own."""
    longest = text.max_position_embeddings
    if isinstance(max_model_len, int) and max_model_len > longest:
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
    if images and (type(length) is not int or length < 1):
        # vLLM 0.20.2 computes the number of image tokens from it, without a check (models/gemma4_mm.py).
        yield error(
            "vision-config",
            "must be the number of tokens of an image",
            file=CONFIG,
            key="vision_config.default_output_length",
            got=repr(length),
            remedy="write 280, as in gemma-4-E4B",
        )
