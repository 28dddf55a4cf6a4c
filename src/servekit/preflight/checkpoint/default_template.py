"""The chat template that vLLM 0.20.2 uses (renderers/hf.py, resolve_chat_template), and whether it can be parsed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

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
    file, text, problem = _template(folder, several=config.text_only)
    problem, line = (problem, 0) if problem else template_problem(text)
    kind = "chat request"
    images = arguments.limit_mm_per_prompt["image"] and config.architecture == ARCHITECTURES[0]
    if not problem and images and "image" not in text:  # it may put the token together: '<|' + part.type + '|>'
        problem, kind = "has no place for images", "chat request with an image"
    if problem:
        message = f"{problem}: vLLM would answer every {kind} with an error"
        yield error("chat-template", message, file=file, line=line, remedy=f"{_COPY}, or name one with chat-template")


def template_problem(text: str) -> tuple[str, int]:
    """Return why a chat template cannot be used, and the line; empty if jinja2 can parse it.

    The extensions are those that transformers gives its templates.
    """
    import jinja2  # for this check only: its imports take time
    from jinja2 import ext, nodes

    class Generation(ext.Extension):
        tags = {"generation"}  # noqa: RUF012 - the base class declares it so

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    if not text.strip():
        return "is empty", 0
    environment = jinja2.Environment(extensions=[Generation, ext.loopcontrols], autoescape=False)  # noqa: S701 - no HTML
    try:
        environment.from_string(text)
    except jinja2.TemplateSyntaxError as problem:
        return f"cannot be parsed: {problem.message}", problem.lineno
    except jinja2.TemplateError as problem:
        return f"cannot be parsed: {problem.message}", 0
    except RecursionError:
        return "is nested too deeply", 0
    return "", 0


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
