"""The files beside the weights: tokenizer, processor, chat template, generation configuration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from servekit.preflight.checkpoint.config_file import ABSENT, ModelConfig, read_object
from servekit.preflight.findings import Finding, error, note, warning

TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
GENERATION_CONFIG: Final = "generation_config.json"
PROCESSORS: Final = ("processor_config.json", "preprocessor_config.json")
TEMPLATES: Final = ("chat_template.jinja", "chat_template.json")
_COPY: Final = "copy it from the original model"


def check_generation(folder: Path) -> Iterator[Finding]:
    """Check the model's sampling defaults."""
    _, problem, line = read_object(folder / GENERATION_CONFIG)
    if problem:
        yield note(
            "generation-config",
            f"{problem}: vLLM uses its own sampling defaults",
            file=GENERATION_CONFIG,
            line=line,
            remedy=_COPY,
        )


def check_tokenizer(folder: Path, config: ModelConfig) -> Iterator[Finding]:
    """Check the tokenizer, and that its vocabulary fits the model."""
    tokenizer, problem, line = read_object(folder / TOKENIZER)
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if problem == ABSENT:
        if not (folder / "tokenizer.model").exists():
            yield error("tokenizer-missing", "does not exist, nor tokenizer.model", file=TOKENIZER, remedy=_COPY)
    elif not isinstance(vocabulary, dict | list):
        yield error(
            "tokenizer-invalid", problem or "does not hold model.vocab", file=TOKENIZER, line=line, remedy=_COPY
        )
    elif config.text:
        largest = max(_ids(vocabulary, tokenizer.get("added_tokens")), default=-1)
        if largest >= config.text.vocab_size:
            yield error(
                "tokenizer-vocabulary",
                f"has the token id {largest:,}, but the embedding has only {config.text.vocab_size:,} rows",
                file=TOKENIZER,
                remedy="use the tokenizer of this model",
            )


def _ids(vocabulary: dict[str, Any] | list[Any], added: Any) -> Iterator[int]:
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else (len(vocabulary) - 1,)
    tokens = (token.get("id") for token in (added if isinstance(added, list) else ()) if isinstance(token, dict))
    yield from (number for number in (*numbers, *tokens) if type(number) is int)


def check_processor(folder: Path, config: ModelConfig) -> Iterator[Finding]:
    """Check the processor that turns images into tokens."""
    name = next((name for name in PROCESSORS if (folder / name).exists()), "")
    if not name:
        yield error(
            "processor-missing",
            "does not exist, but images are allowed",
            file=PROCESSORS[0],
            remedy=f"{_COPY}, or allow no images",
        )
        return
    processor, problem, line = read_object(folder / name)
    if problem:
        yield error("processor-invalid", problem, file=name, line=line, remedy=_COPY)
    section = processor.get("image_processor")
    tokens = section.get("max_soft_tokens") if isinstance(section, dict) else None
    wanted = (config.vision or {}).get("default_output_length")
    if type(tokens) is int and type(wanted) is int and tokens != wanted:
        yield warning(
            "processor-invalid",
            f"is {tokens}, vision_config.default_output_length of config.json is {wanted}",
            file=name,
            key="image_processor.max_soft_tokens",
            remedy="set both to the number of tokens of an image",
        )


def check_template(folder: Path, *, own_template: bool) -> Iterator[Finding]:
    """Check tokenizer_config.json and the chat template; `own_template`: the profile names one."""
    settings, problem, line = read_object(folder / TOKENIZER_CONFIG)
    if problem:
        yield warning("tokenizer-config", problem, file=TOKENIZER_CONFIG, line=line, remedy=_COPY)
    if own_template or settings.get("chat_template"):
        return
    present = [folder / name for name in TEMPLATES if (folder / name).exists()]
    present += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if not present:
        yield error(
            "chat-template",
            "does not exist: vLLM would answer every chat request with an error",
            file=TEMPLATES[0],
            remedy=f"{_COPY}, or name one with chat-template",
        )
    elif not any(path.stat().st_size for path in present):
        yield error("chat-template", "is empty", file=str(present[0].relative_to(folder)), remedy=_COPY)
