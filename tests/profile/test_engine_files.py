"""servekit's verdict on what a profile names, compared with vLLM's own code."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ConfigurationError
from servekit.profile import load_profile

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TEMPLATES = (
    "{{ messages }}",
    "{% generation %}a{% endgeneration %}",
    "{% for m in messages %}{% if m %}{% continue %}{% endif %}{% break %}{% endfor %}",
    "{{ m | tojson }}{{ raise_exception('x') }}{{ strftime_now('%Y') }}",
    "{% generation %}a",
    "{% for %}",
    "{{ a | nosuch }}",
    "{{ a is nosuch }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(1) }}",
    "template_chatml.jinja",
    "nosuch.jinja",
    "examples/nosuch.jinja",
    "own.jinja",
    ".",
)
MODULES = (
    "a=b",
    "a=b=c",
    "sql",
    "{}",
    '{"name": "a", "path": "b"}',
    '{"name": "a"}',
    '{"name": "a", "path": "b", "x": 1}',
)
ADAPTERS: tuple[dict[str, Any], ...] = (
    {},
    {"r": 16},
    {"r": 17},
    {"use_dora": True},
    {"bias": "all"},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": []},
)
LIMITS: tuple[dict[str, Any], ...] = (
    {"image": 3},
    {"image": {"count": 3, "width": 1024, "height": 1024}},
    {"image": {"width": 1024}},
    {"image": {"count": -1}},
    {"image": {"width": 0}},
    {"image": {"num_frames": 2}},
    {"video": {"count": 0, "num_frames": 2, "width": 3}},
    {"audio": {"count": 0, "length": 5}},
    {"audio": {"width": 5}},
)
DRAFTERS: tuple[dict[str, Any], ...] = (
    {"method": "ngram", "num_speculative_tokens": 2},
    {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 4},
    {"method": "ngram", "num_speculative_tokens": 0},
    {"method": "ngram"},
    {"num_speculative_tokens": 2},
    {"method": "nosuch", "num_speculative_tokens": 2},
    {"method": "ngram", "num_speculative_tokens": 2, "n": 3},
)


def test_vllm_judges_the_same(engine_python: Path, write: Callable[[str], Path], smallest: str, tmp_path: Path) -> None:
    """Templates, adapters, limits and drafters: servekit accepts what vLLM's code accepts, and refuses the rest."""
    write("")  # changes to tmp_path
    Path("own.jinja").write_text("{{ messages }}")
    cases: list[tuple[str, Any]] = [("template", text) for text in TEMPLATES]
    cases += [("module", item) for item in MODULES]
    for number, changes in enumerate(ADAPTERS):
        folder = tmp_path / f"adapter{number}"
        folder.mkdir()
        config = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]} | changes
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").touch()
        cases.append(("adapter", str(folder)))
    cases += [("limit", value) for value in LIMITS]
    cases += [("speculative", value) for value in DRAFTERS]
    program = [engine_python, Path(__file__).with_name("engine_files.py")]
    done = subprocess.run(program, input=json.dumps(cases), capture_output=True, text=True, check=False, cwd=tmp_path)
    taken = json.loads(done.stdout.rpartition("taken: ")[2] or "[]")
    assert len(taken) == len(cases), done.stderr[-2000:]
    assert 15 < sum(taken) < len(cases) - 15
    ours = [accepts(write, smallest, name, value) for name, value in cases]
    assert [case for case, theirs, our in zip(cases, taken, ours, strict=True) if theirs != our] == []


def accepts(write: Callable[[str], Path], smallest: str, name: str, value: Any) -> bool:
    """Whether servekit takes a profile with this value; the contract's own limits do not count."""
    text = json.dumps(value)
    line = {
        "template": f"chat-template: {text}\n",
        "module": f"enable-lora: true\nlora-modules: {text}\n",
        "adapter": f"enable-lora: true\nlora-modules: {json.dumps(f'a={value}')}\n",
        "limit": "",
        "speculative": f"speculative-config: {text}\n",
    }[name]
    profile = smallest.partition("limit-mm")[0] + f"limit-mm-per-prompt: {text if name == 'limit' else '{image: 3}'}\n"
    try:
        load_profile(write(profile + line), deviate=["limit-mm-per-prompt"])
    except ConfigurationError:
        return False
    return True
