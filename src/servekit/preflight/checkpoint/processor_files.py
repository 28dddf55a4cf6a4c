"""The files of Gemma 4's processor, which turns images into tokens.

vLLM 0.20.2 builds the whole processor at its start, with its parts for images, video and audio, whatever the limits are
(transformers 5.8, models/gemma4/processing_gemma4.py).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import ABSENT, ModelConfig, read_object
from servekit.preflight.checkpoint.schema.processor_types import processor_faults
from servekit.preflight.checkpoint.text_config import ARCHITECTURES
from servekit.preflight.findings import Finding, error
from servekit.profile import EngineArguments

PROCESSOR: Final = "processor_config.json"
_PREPROCESSOR: Final = "preprocessor_config.json"
_COPY: Final = "copy it from the original model"
_PARTS: Final[Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    "image_processor": (
        "image",
        ("Gemma4ImageProcessor", "Gemma4ImageProcessorFast", "Gemma4ImageProcessorPil"),
        (_PREPROCESSOR,),
    ),
    "video_processor": ("video", ("Gemma4VideoProcessor",), ("video_preprocessor_config.json", _PREPROCESSOR)),
    "feature_extractor": ("audio", ("Gemma4AudioFeatureExtractor",), (_PREPROCESSOR,)),
}
"""Each section of processor_config.json: its modality, its classes, and the files that stand in for it."""
_MODELS: Final = {
    "video_processor": "Glm46V Glm4v InstructBlipVideo InternVL LlavaNextVideo LlavaOnevision MiniCPMV4_6 PeVideo "
    "PerceptionLM Qwen2VL Qwen3VL Sam2Video SmolVLM VJEPA2 VideoLlama3 VideoLlava VideoMAE Videomt",
    "feature_extractor": "AST Clap Clvp Dac Dia Encodec Gemma3nAudio GraniteSpeech KyutaiSpeechToText Lasr "
    "MusicgenMelody PeAudio Phi4Multimodal SeamlessM4T Speech2Text SpeechT5 UnivNet VibeVoiceAcousticTokenizer "
    "VoxtralRealtime Wav2Vec2 Whisper",
}
UNUSED_CLASSES: Final[Mapping[str, frozenset[str]]] = {
    part: frozenset(f"{model}{part.title().replace('_', '')}" for model in models.split())
    for part, models in _MODELS.items()
}
"""Other models' classes, which transformers builds too: they do no harm where the modality is closed."""
_SOFT_TOKENS: Final = (70, 140, 280, 560, 1120)
_SHARED: Final[Mapping[str, int]] = {"patch_size": 16, "pooling_kernel_size": 3}
"""What image processor and vision tower must agree on, with the default of both."""


def check_processor(folder: Path, config: ModelConfig, arguments: EngineArguments) -> Iterator[Finding]:
    """Check the processor's files."""
    if config.architecture != ARCHITECTURES[0]:
        return
    processor, problem, line = read_object(folder / PROCESSOR)
    if problem not in {"", ABSENT}:
        yield error("processor-invalid", problem, file=PROCESSOR, line=line, remedy=_COPY)
        return
    yield from _check_class(folder)
    if problem and not (folder / _PREPROCESSOR).exists():
        yield error("processor-missing", f"{problem}, nor {_PREPROCESSOR}", file=PROCESSOR, remedy=_COPY)
        return
    for part, (_, _, substitutes) in _PARTS.items():
        section, file, key = processor.get(part), PROCESSOR, f"{part}."
        if section is None:
            file, key = next((name for name in substitutes if (folder / name).exists()), ""), ""
            section, problem, line = read_object(folder / file) if file else ({}, "", 0)
            if problem:
                yield error("processor-invalid", problem, file=file, line=line, remedy=_COPY)
                continue
        if not file or not isinstance(section, dict):
            message = f"holds no {part}, which vLLM {ENGINE_VERSION} builds for every Gemma 4 with towers"
            yield error("processor-missing", message, file=PROCESSOR, key=part, remedy=_COPY)
            continue
        for name, message in _part_faults(part, section, key, config, arguments):
            yield error("processor-invalid", message, file=file, key=f"{key}{name}".rstrip("."), remedy=_COPY)


def _check_class(folder: Path) -> Iterator[Finding]:
    """Check the class in the first file that has the key: vLLM looks a true value up by its name, and no false one."""
    for file in (PROCESSOR, _PREPROCESSOR, "tokenizer_config.json"):
        content, _, _ = read_object(folder / file)
        if "processor_class" in content:
            kind = content["processor_class"]
            if kind and not isinstance(kind, str):
                yield error("processor-invalid", "must be a string", file=file, key="processor_class", got=repr(kind))
            return


def _part_faults(
    part: str, section: Mapping[str, Any], key: str, config: ModelConfig, arguments: EngineArguments
) -> Iterator[tuple[str, str]]:
    """Yield the key within the section, and what is wrong with its value."""
    kind = section.get(f"{part}_type")
    modality, classes, _ = _PARTS[part]
    if kind is not None and kind not in classes and (key or modality == "image"):
        if arguments.limit_mm_per_prompt[modality] or str(kind) not in UNUSED_CLASSES.get(part, ()):
            yield f"{part}_type", f"is {kind!r}, not {classes[0]!r}: its output does not fit vLLM's Gemma 4"
        return
    yield from processor_faults(part, section).items()
    tokens = section.get("max_soft_tokens", _SOFT_TOKENS[2])
    if "max_soft_tokens" in section and tokens not in _SOFT_TOKENS:
        yield "max_soft_tokens", f"is {tokens!r}, not one of {', '.join(map(str, _SOFT_TOKENS))}"
        return
    if part != "image_processor" or not arguments.limit_mm_per_prompt["image"]:
        return
    wanted = (config.vision or {}).get("default_output_length")
    if not arguments.mm_processor_kwargs and type(wanted) is int and tokens != wanted:
        message = f"is {tokens}, vision_config.default_output_length of config.json is {wanted}"
        yield "max_soft_tokens", f"{message}, by which vLLM counts the tokens of an image"
    for name, default in _SHARED.items():
        tower, own = (config.vision or {}).get(name, default), section.get(name, default)
        if own != tower:
            yield name, f"is {own!r}, vision_config.{name} of config.json is {tower!r}: images would not fit the tower"
