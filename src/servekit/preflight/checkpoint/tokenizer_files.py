"""What stands beside the weights: tokenizer, processor, chat template, generation configuration."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.findings import Finding, error, note, warning

TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
GENERATION_CONFIG: Final = "generation_config.json"
PROCESSORS: Final = ("processor_config.json", "preprocessor_config.json")
TEMPLATES: Final = ("chat_template.jinja", "chat_template.json")
_COPY: Final = "copy it from the original model"


def check_companions(folder: Path, config: ModelConfig, *, images: int, own_template: bool) -> Iterator[Finding]:
    """Check the files; `images` is the limit per prompt, `own_template` whether the profile brings a chat template."""
    settings, problem = _object(folder / TOKENIZER_CONFIG)
    if problem:
        yield warning("tokenizer-config", problem, subject=TOKENIZER_CONFIG, remedy=_COPY)
    yield from _check_tokenizer(folder, config)
    if images and config.vision is not None:
        yield from _check_processor(folder, config)
    if not own_template:
        yield from _check_template(folder, settings)
    _, problem = _object(folder / GENERATION_CONFIG)
    if problem:
        yield note(
            "generation-config",
            f"{problem}: sampling defaults are vLLM's own",
            subject=GENERATION_CONFIG,
            remedy=_COPY,
        )


def _object(path: Path) -> tuple[dict[str, Any], str]:
    """Read the file's JSON object, or give an empty one and the reason."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, "the file is not there"
    except (OSError, ValueError, RecursionError) as problem:
        return {}, f"cannot be read: {problem}"
    return (value, "") if isinstance(value, dict) else ({}, "holds no JSON object")


def _check_tokenizer(folder: Path, config: ModelConfig) -> Iterator[Finding]:
    if not (folder / TOKENIZER).exists():
        if not (folder / "tokenizer.model").exists():
            yield error("tokenizer-missing", f"no {TOKENIZER} and no tokenizer.model", subject=TOKENIZER, remedy=_COPY)
        return
    tokenizer, problem = _object(folder / TOKENIZER)
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if problem or not isinstance(vocabulary, dict | list):
        yield error("tokenizer-invalid", problem or "holds no model.vocab", subject=TOKENIZER, remedy=_COPY)
        return
    largest = max(_ids(vocabulary, tokenizer.get("added_tokens")), default=-1)
    if config.text and largest >= config.text.vocab_size:
        yield error(
            "tokenizer-vocabulary",
            f"the largest token id is {largest:,}, the embedding has {config.text.vocab_size:,} rows",
            subject=TOKENIZER,
            remedy="the tokenizer belongs to another model",
        )


def _ids(vocabulary: dict[str, Any] | list[Any], added: Any) -> Iterator[int]:
    if isinstance(vocabulary, list):
        yield len(vocabulary) - 1
    else:
        yield from (number for number in vocabulary.values() if type(number) is int)
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and type(token.get("id")) is int:
            yield token["id"]


def _check_processor(folder: Path, config: ModelConfig) -> Iterator[Finding]:
    present = [name for name in PROCESSORS if (folder / name).exists()]
    if not present:
        yield error(
            "processor-missing",
            f"images are allowed, but there is no {PROCESSORS[0]}",
            subject=PROCESSORS[0],
            remedy=f"{_COPY}, or allow no images",
        )
        return
    processor, problem = _object(folder / present[0])
    if problem:
        yield error("processor-invalid", problem, subject=present[0], remedy=_COPY)
        return
    section = processor.get("image_processor")
    tokens = section.get("max_soft_tokens") if isinstance(section, dict) else None
    wanted = (config.vision or {}).get("default_output_length")
    if type(tokens) is int and type(wanted) is int and tokens != wanted:
        yield warning(
            "processor-invalid",
            f"image_processor.max_soft_tokens is {tokens}, vision_config.default_output_length is {wanted}",
            subject=present[0],
            remedy="set both to the number of tokens an image takes",
        )


def _check_template(folder: Path, settings: dict[str, Any]) -> Iterator[Finding]:
    present = [folder / name for name in TEMPLATES if (folder / name).exists()]
    present += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if settings.get("chat_template"):
        return
    if not present:
        yield error(
            "chat-template",
            "no chat template: vLLM would answer every chat request with an error",
            subject=TEMPLATES[0],
            remedy=f"{_COPY}, or name one with chat-template",
        )
    elif not any(path.stat().st_size for path in present):
        yield error("chat-template", "the chat template is empty", subject=present[0].name, remedy=_COPY)
