"""Loading any file gives a profile or a ConfigurationError."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from servekit.errors import ConfigurationError
from servekit.profile import Value, load_profile, render
from servekit.profile.argument_table import engine_arguments

names = st.sampled_from(sorted(engine_arguments()))
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["on", "0777", "1e-5", "1:30", "~", "=", "<<", "2001-01-01", "20k", "None", "[1", "&a", "!!x"]),
    st.from_regex(r"[-+]?[0-9_:.a-fxeE]{1,12}", fullmatch=True),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=10,
)
lines = st.builds("{}: {}".format, st.one_of(names, words), words)
fuzz = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return one file for all the examples of a test."""
    return tmp_path / "profile.yaml"


@fuzz
@example(b"\xef\xbb\xbf")
@example(b"\x85: \xe2\x80\xa8")
@example(b"a: !<\xff>")
@example(b"%TAG ! x\n--- !a b")
@example(b"%YAML 9.9\n---\na: 1")
@example(b"? ? ? a")
@example(b"- - - -")
@example(b"[" * 60000)
@example(b"a: {" * 15000)
@example(b"a: *" + b"x" * 60000)
@given(st.binary(max_size=200))
def test_any_bytes(path: Path, contents: bytes) -> None:
    """Any bytes give a profile or a ConfigurationError."""
    check(path, contents)


@fuzz
@given(st.lists(lines, max_size=6))
def test_any_lines(path: Path, rows: list[str]) -> None:
    """Lines that are nearly valid, among valid ones."""
    check(path, "\n".join(rows).encode(errors="surrogatepass"))


@fuzz
@given(st.dictionaries(st.one_of(names, words), trees, max_size=6))
def test_any_tree(path: Path, smallest: str, tree: dict[str, Any]) -> None:
    """Values of every type for vLLM's own names."""
    check(path, (yaml.safe_dump(tree, allow_unicode=False) if tree else "").encode() + b"\n" + smallest.encode())


@fuzz
@given(names, trees)
def test_any_value_of_one_argument(path: Path, smallest: str, name: str, tree: Value) -> None:
    """A profile with any value for one argument is rejected, or can be rendered as program arguments."""
    check(path, smallest.encode() + yaml.safe_dump({name: tree}, allow_unicode=False).encode())


def check(path: Path, contents: bytes) -> None:
    """Load `contents`: a profile, which can be rendered, or an error with its place."""
    path.write_bytes(contents)
    try:
        profile = load_profile(path)
    except ConfigurationError as error:
        mistakes, words = error.findings, []
    else:
        mistakes, words = (), list(render(profile.arguments))
    assert mistakes or words
    assert all(mistake.message and mistake.file == str(path) for mistake in mistakes)
    assert all("\0" not in word for word in words)
    assert all(isinstance(os.fsencode(word), bytes) for word in words)
