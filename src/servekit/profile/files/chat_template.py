"""Whether a text is a chat template, and what it makes of an image; for transformers (utils/chat_template_utils.py)."""

from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """The block `generation`, by which templates mark answers to train on: its contents count as written."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Any) -> Any:
        """Return what the block holds."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_problem(text: str) -> tuple[str, int]:
    """Return why `text` is not a Jinja template, and the line; empty where it is one. Runs nothing of it."""
    try:
        _compiled(text)
    except TemplateError as error:
        return str(error.message), getattr(error, "lineno", 0)
    except RecursionError:
        return "it is nested too deeply", 0
    return "", 0


def writes_image(text: str, token: str) -> bool:
    """Return whether a chat with an image has the image's token. vLLM 0.20.2 ends every such chat without it."""
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    chat = {"messages": [{"role": "user", "content": content}], "add_generation_prompt": True, "bos_token": ""}
    try:
        return token in _compiled(text).render(chat)
    except Exception:  # noqa: BLE001 - it calls what only transformers gives it, or refuses this chat
        return "image" in text


@lru_cache(maxsize=8)
def _compiled(text: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    return environment.from_string(text)
