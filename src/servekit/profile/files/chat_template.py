"""Whether a text is a chat template, compiled as transformers does it (utils/chat_template_utils.py)."""

from typing import Any

from jinja2 import TemplateError
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
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    try:
        environment.from_string(text)
    except TemplateError as error:
        return str(error.message), getattr(error, "lineno", 0)
    except RecursionError:
        return "it is nested too deeply", 0
    return "", 0
