"""Files that a profile names: chat templates, adapters and plugins."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servekit.profile import load_profile

Write = Callable[[str], Path]
Refused = Callable[..., list[str]]

TEMPLATE = """
{%- for message in messages -%}
  {%- if message.role == "system" -%}{%- continue -%}{%- endif -%}
  {% generation %}{{ message.content | tojson }}{% endgeneration %}
{%- endfor -%}
"""
"""What templates use beside plain Jinja: transformers' own block, and loop controls."""


def test_a_template_is_read(write: Write, smallest: str, tmp_path: Path) -> None:
    """A file, the template itself and the name of one that vLLM ships are taken."""
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    inline = "|\n" + textwrap.indent(TEMPLATE.strip(), "  ")
    for value in ("own.jinja", str(tmp_path / "own.jinja"), "template_chatml.jinja", "'{{ messages }}'", inline):
        assert "chat-template" in load_profile(write(f"{smallest}chat-template: {value}\n")).arguments


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("examples/none.jinja", "is not a file"),
        ("folder", "is not a file"),
        ("/dev/zero", "is not a file"),
        ("bytes.jinja", "is not UTF-8 text"),
        ("broken.jinja", "is not a Jinja template: Unexpected end of template."),
        ("filter.jinja", "is not a Jinja template: No filter named 'nosuch'., in line 2 of it"),
        ("'{% for %}'", "is not a Jinja template: Expected an expression, got 'end of statement block', in line 1 of"),
        ("'{{ a '", "is not a Jinja template: unexpected end of template"),
    ],
)
def test_a_template_that_is_none(
    refused: Refused, write: Write, smallest: str, tmp_path: Path, value: str, message: str
) -> None:
    """A path that is not there and a text that is not a template are mistakes, with the template's own line."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes.jinja").write_bytes(b"{{ \xff }}")
    (tmp_path / "broken.jinja").write_text("{% if a %}\n{{ a }}\n")
    (tmp_path / "filter.jinja").write_text("\n{{ a | nosuch }}\n")
    (line,) = refused(write(f"{smallest}chat-template: {value}\n"))
    assert line.startswith(f"profile.yaml:8: error: chat-template: {message}")


ADAPTER: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none", "use_dora": False}


def make_adapter(folder: Path, **changes: Any) -> Path:
    """Write what vLLM reads first of an adapter: its configuration, and the name of its weights."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER | changes))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_adapters_are_taken(write: Write, smallest: str, tmp_path: Path) -> None:
    """A folder by either form, and the id of a hub, are taken; so is a rank that the profile allows."""
    folder = make_adapter(tmp_path / "sql", r=64)
    as_json = json.dumps({"name": "b", "path": str(folder), "base_model_name": "m"})
    lines = f"enable-lora: true\nmax-lora-rank: 64\nlora-modules: [a={folder}, '{as_json}', c=owner/name, d=sql]\n"
    lines += f"default-mm-loras: {{image: {folder}}}\n"
    assert len(load_profile(write(smallest + lines)).arguments["lora-modules"]) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 32}, "has rank 32, and max-lora-rank is 16"),
        ({"use_dora": True}, "vLLM 0.20.2 loads no adapter with use_dora"),
        ({"modules_to_save": ["lm_head"]}, "vLLM 0.20.2 loads no adapter with modules_to_save"),
        ({"bias": "all"}, "vLLM 0.20.2 loads no adapter with bias"),
        ({"r": None}, "adapter_config.json is not that of a LoRA"),
    ],
)
def test_adapters_that_vllm_cannot_load(
    refused: Refused, write: Write, smallest: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """What vLLM's PEFTHelper rejects is a mistake at the line of the adapter."""
    folder = make_adapter(tmp_path / "sql", **changes)
    (line,) = refused(write(f"{smallest}enable-lora: true\nlora-modules:\n  - a=owner/name\n  - sql={folder}\n"))
    assert line.startswith(f"profile.yaml:11: error: lora-modules[1]: {message}")


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        ("enable-lora: true\nlora-modules: sql=/adapters/sql", ["9: error: lora-modules: does not exist"]),
        ("enable-lora: true\nlora-modules: sql=~nouser/x", ["9: error: lora-modules: does not exist"]),
        ("enable-lora: true\nlora-modules: sql", ["9: error: lora-modules: must be a name and a path"]),
        ("enable-lora: true\nlora-modules: a=b=c", ["9: error: lora-modules: must be a name and a path"]),
        ("enable-lora: true\nlora-modules: '{\"name\": 1}'", ["9: error: lora-modules: must be a name and a path"]),
        ("lora-modules: a=owner/name", ["8: error: lora-modules: needs enable-lora"]),
        (
            "default-mm-loras: {image: ./none}",
            ["8: error: default-mm-loras.image: needs enable-lora", "8: error: default-mm-loras.image: does not exist"],
        ),
        (
            "enable-lora: true\nlora-modules: a=empty",
            ["9: error: lora-modules: has no adapter_model", "9: error: lora-modules: adapter_config.json cannot be"],
        ),
        ("tool-parser-plugin: none.py", ["8: error: tool-parser-plugin: does not exist"]),
    ],
)
def test_files_that_are_not_there(
    refused: Refused, write: Write, smallest: str, tmp_path: Path, lines: str, messages: list[str]
) -> None:
    """A missing adapter or plugin, and an item that names none, are mistakes."""
    (tmp_path / "empty").mkdir()
    found = refused(write(f"{smallest}{lines}\n"))
    assert len(found) == len(messages)
    for line, message in zip(found, messages, strict=True):
        assert line.startswith(f"profile.yaml:{message}")
