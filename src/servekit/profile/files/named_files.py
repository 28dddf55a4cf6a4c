"""Every file that a profile names."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from servekit.file_trouble import explain, find_trouble
from servekit.profile.argument_table import engine_arguments
from servekit.profile.files.adapter import adapter_problems, named_path
from servekit.profile.mistakes import Mistakes, shown
from servekit.profile.values import Lines, Value

_JINJA: Final = re.compile(r"[{}\n]")
"""A template's own text has one of these; vLLM takes everything else for a path (entrypoints/chat_utils.py)."""

_Problem = tuple[str, str]
"""What is wrong, and what to do."""


def note_broken_files(arguments: Mapping[str, Value], lines: Lines, mistakes: Mistakes) -> None:
    """Add a mistake for each file that `arguments` name and vLLM could not use. Reads the files."""
    for key, check in _CHECKS.items():
        given = arguments.get(key) or []
        parts = given if isinstance(given, dict) else {f"[{index}]": item for index, item in enumerate(_listed(given))}
        for part, item in parts.items():
            path = (key, part) if (key, part) in lines else (key,)
            for message, remedy in check(str(item), arguments):
                mistakes.add(
                    lines[path], message, key=".".join(path).replace(".[", "["), got=shown(item), remedy=remedy
                )


def _listed(value: Value) -> list[Value]:
    return value if isinstance(value, list) else [value]


def _template(value: str, _: Mapping[str, Value]) -> Iterator[_Problem]:
    text = value
    if os.path.isfile(value):  # noqa: PTH113 - Path.is_file raises for a text that is too long for a path
        try:
            text = Path(value).read_text(encoding="utf-8")
        except OSError as error:
            yield explain(error, Path(value))["message"], "make it readable for this user"
            return
        except ValueError:
            yield "is not UTF-8 text", "save the file as UTF-8 text"
            return
    elif not _JINJA.search(value):
        if value not in engine_arguments()["chat-template"].names:
            why = find_trouble(Path(value))
            yield why["message"] if why else "is not a file", "give the path of a template, or the template itself"
        return
    from servekit.profile.files.chat_template import template_problem  # Jinja is for this case only

    problem, line = template_problem(text)
    if problem:
        where = f", in line {line} of it" if line else ""
        yield f"is not a Jinja template: {problem}{where}", "correct it: every chat request would fail"


def _module(item: str, arguments: Mapping[str, Value]) -> Iterator[_Problem]:
    if path := named_path(item):
        yield from _adapter(path, arguments)
    else:
        yield "must be a name and a path", "write `name=/path/of/the/adapter`"


def _adapter(path: str, arguments: Mapping[str, Value]) -> Iterator[_Problem]:
    if arguments.get("enable-lora") is not True:
        yield "needs enable-lora", "add `enable-lora: true`, or take it out"
    rank = arguments.get("max-lora-rank", engine_arguments()["max-lora-rank"].default)
    yield from adapter_problems(path, rank if isinstance(rank, int) else 0)


def _plugin(value: str, _: Mapping[str, Value]) -> Iterator[_Problem]:
    if not Path(value).is_file():  # vLLM only logs that
        yield "does not exist", "give the path of a Python file"


_CHECKS: Final = {
    "chat-template": _template,
    "lora-modules": _module,
    "default-mm-loras": _adapter,
    "tool-parser-plugin": _plugin,
    "reasoning-parser-plugin": _plugin,
}
"""What checks the value, each item of a list or each value of a mapping."""
