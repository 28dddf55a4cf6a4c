"""servekit's knowledge of vLLM's arguments, compared with the installed vLLM."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servekit.profile import Value, load_profile, render
from servekit.profile.argument_table import Argument, engine_arguments

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

Parse = Callable[[list[list[str]]], list[dict[str, Any]]]


def test_table_is_what_the_installed_vllm_gives(root: Path, engine_python: Path) -> None:
    """The committed table equals a fresh one from the engine's own parser."""
    done = subprocess.run(
        [engine_python, root / "scripts" / "engine_args.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_vllm_hears_what_the_profile_says(parse_with_engine: Parse) -> None:
    """vLLM's parser returns the same value for every argument, rendered with several values."""
    samples = [
        (argument, value)
        for argument in engine_arguments().values()
        if argument.name not in ("config", "lora-modules", "model")  # a file; objects; moved to the front
        for value in sample_values(argument)
    ]
    lines = [["serve", "MODEL", *render({argument.name: value})] for argument, value in samples]
    wrong = [
        (argument.name, value, parsed.get("error", parsed.get(argument.name.replace("-", "_"))))
        for (argument, value), parsed in zip(samples, parse_with_engine(lines), strict=True)
        if not heard(argument, value, parsed)
    ]
    assert wrong == []
    assert len(samples) > 300


def test_shipped_profiles_mean_the_same_to_plain_vllm(root: Path, parse_with_engine: Parse) -> None:
    """`vllm serve MODEL --config FILE` accepts the shipped files and gets the values that servekit renders."""
    files = [root / "vllm_config.yaml", root / "profiles" / "fp16-baseline.yaml"]
    lines = []
    for file in files:
        profile = load_profile(file, deviate={"quantization", "kv-cache-dtype"})
        lines.append(["serve", "MODEL", "--config", str(file)])
        lines.append(["serve", "MODEL", *render(profile.arguments)])
    parsed = parse_with_engine(lines)
    for by_vllm, by_servekit in zip(parsed[::2], parsed[1::2], strict=True):
        assert "error" not in by_vllm
        assert by_servekit | {"config": None} == by_vllm | {"config": None}
    assert parsed[0]["limit_mm_per_prompt"] == {"image": 3, "audio": 0, "video": 0}
    assert parsed[0]["quantization"] == "compressed-tensors"
    assert parsed[2]["quantization"] is None


def test_false_is_false_in_the_engine(write: Callable[[str], Path], smallest: str, parse_with_engine: Parse) -> None:
    """A `false` that vLLM's own --config drops reaches it as --no-x."""
    path = write(smallest + "enable-prefix-caching: false\nscheduler-reserve-full-isl: false\n")
    profile = load_profile(path)
    dropped, heard_ = parse_with_engine(
        [["serve", "MODEL", "--config", str(path.absolute())], ["serve", "MODEL", *render(profile.arguments)]]
    )
    keys = ("enable_prefix_caching", "scheduler_reserve_full_isl")
    assert [dropped[key] for key in keys] == [None, True]
    assert [heard_[key] for key in keys] == [False, False]


def test_vllm_takes_the_spellings_that_servekit_takes(parse_with_engine: Parse) -> None:
    """Human-readable numbers mean the same to both."""
    words = ["20k", "20K", "2.5k", "1m", "1M", "7"]
    parsed = parse_with_engine([["serve", "MODEL", "--max-num-batched-tokens", word] for word in words])
    assert [values["max_num_batched_tokens"] for values in parsed] == [20000, 20480, 2500, 10**6, 2**20, 7]


def sample_values(argument: Argument) -> list[Value]:
    """Return values of every type that `argument` accepts."""
    if argument.choices:
        return [[choice] for choice in argument.choices] if argument.many else list(argument.choices)
    if argument.fields:
        return [{}]
    samples: dict[str, list[Value]] = {
        "bool": [True, False],
        "switch": [True, False],
        "int": [3, -3],
        "human_int": [20000, 1],
        "human_int_or_auto": [20000, "auto"],
        "float": [0.5, 2, 1e-05, -0.25],
        "str": ["plain", "two words", "-Odd", "--under_score", "a.b=c", "-x.y", 'q"uote', "ümlaut", "{braces}"],
        "json": [{"a": {"b_c": [1, "two", True]}}, {}],
        "json_list": [["*"], ["a", "b"]],
        "json_or_str": [{"a": 1}, "text"],
        "limits": [{"image": 3, "audio": 0}, {}],
    }
    values = samples[argument.kind]
    if argument.many or argument.repeat:
        values = [value for value in values if argument.repeat or not str(value).startswith("-")]
        return [values[:1], values[:3]]
    return values


def heard(argument: Argument, value: Value, parsed: dict[str, Any]) -> bool:
    """Return whether vLLM's parser kept `value` unchanged for `argument`."""
    if "error" in parsed:
        return False
    got = parsed[argument.name.replace("-", "_")]
    if argument.fields or argument.name == "pooler-config":
        return True  # an object of vLLM's own
    if argument.name == "optimization-level":
        return bool(got == str(value))  # vLLM keeps the text, and converts it to its enumeration later
    return bool(got == (-1 if value == "auto" and argument.kind == "human_int_or_auto" else value))
