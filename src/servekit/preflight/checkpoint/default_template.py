"""The chat template that vLLM 0.20.2 uses (renderers/hf.py, resolve_chat_template), and whether it can be parsed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from servekit.preflight.checkpoint.config_file import ABSENT, ModelConfig, read_object
from servekit.preflight.checkpoint.text_config import ARCHITECTURES
from servekit.preflight.checkpoint.tokenizer_files import TOKENIZER_CONFIG
from servekit.preflight.findings import Finding, error
from servekit.profile import EngineArguments

TEMPLATE: Final = "chat_template.jinja"
_LEGACY: Final = "chat_template.json"
_KEY: Final = "chat_template"
_COPY: Final = "copy it from the original model"


def check_template(folder: Path, config: ModelConfig, arguments: EngineArguments) -> Iterator[Finding]:
    """Check the checkpoint's chat template, unless the profile names another."""
    if arguments.chat_template:
        return
    from servekit.profile.files.chat_template import template_problem, writes_image  # Jinja is for this check only

    file, text, problem = _template(folder, several=config.text_only)
    line = 0
    if not problem and not text.strip():
        problem = "is empty"
    elif not problem:
        problem, line = template_problem(text)
        problem = problem and f"cannot be parsed: {problem}"
    kind = "chat request"
    images = arguments.limit_mm_per_prompt["image"] and config.architecture == ARCHITECTURES[0]
    if not problem and images and not writes_image(text, _image_token(folder)):
        problem, kind = "has no place for images", "chat request with an image"
    if problem:
        message = f"{problem}: vLLM would answer every {kind} with an error"
        yield error("chat-template", message, file=file, line=line, remedy=f"{_COPY}, or name one with chat-template")


def _image_token(folder: Path) -> str:
    settings, _, _ = read_object(folder / TOKENIZER_CONFIG)
    return str(settings.get("image_token") or "<|image|>")


def _template(folder: Path, *, several: bool) -> tuple[str, str, str]:
    """Return the file of the template, its text, and why there is none.

    `several` files may be there without a processor: of a processor's vLLM wants a text and gets a mapping.
    """
    legacy, problem, _ = read_object(folder / _LEGACY)
    if problem != ABSENT:
        text = legacy.get(_KEY)
        if isinstance(text, str):
            return _LEGACY, text, problem
        return _LEGACY, "", problem or f"holds no text at {_KEY}"
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if (folder / TEMPLATE).exists() or more:
        return (TEMPLATE, *_of_files(folder / TEMPLATE, () if several else more))
    settings, _, _ = read_object(folder / TOKENIZER_CONFIG)
    if _KEY not in settings:
        return TEMPLATE, "", ABSENT
    text, why = _default(settings[_KEY])
    return TOKENIZER_CONFIG, text, why


def _of_files(path: Path, more: Sequence[Path]) -> tuple[str, str]:
    if more or not path.exists():
        problem = "is not the only template" if path.exists() else ABSENT
        return "", f"{problem}: vLLM takes one file, and additional_chat_templates holds others"
    try:
        return path.read_text(encoding="utf-8"), ""
    except ValueError as reason:
        return "", f"is not UTF-8: {reason}"


def _default(value: object) -> tuple[str, str]:
    """Return the default of one template or of a list of named ones, and why there is none."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        if "default" not in named:
            return "", f"{_KEY} names {', '.join(map(repr, named)) or 'nothing'}, and no 'default'"
        value = named["default"]
    return (value, "") if isinstance(value, str) else ("", f"{_KEY} is {type(value).__name__}, not text")
