"""The command line of a profile; test_engine_parser.py compares it with vLLM's own parser."""

import pytest

from servekit.profile import Value, render


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", 5, ("--seed", "5")),
        ("seed", -5, ("--seed=-5",)),
        ("gpu-memory-utilization", 0.9, ("--gpu-memory-utilization", "0.9")),
        ("kv-cache-dtype", "fp8_e4m3", ("--kv-cache-dtype", "fp8_e4m3")),
        ("chat-template", "-x", ("--chat-template=-x",)),
        ("enforce-eager", True, ("--enforce-eager",)),
        ("enforce-eager", False, ("--no-enforce-eager",)),
        ("aggregate-engine-logging", True, ("--aggregate-engine-logging",)),
        ("aggregate-engine-logging", False, ()),
        ("limit-mm-per-prompt", {"image": 3}, ("--limit-mm-per-prompt", '{"image": 3}')),
        ("allowed-origins", ["*"], ("--allowed-origins", '["*"]')),
        ("hf-overrides", "text", ("--hf-overrides", "text")),
        ("served-model-name", ["a", "b"], ("--served-model-name", "a", "b")),
        ("cudagraph-capture-sizes", [1, 2], ("--cudagraph-capture-sizes", "1", "2")),
        ("middleware", ["a.B", "-c"], ("--middleware", "a.B", "--middleware=-c")),
        ("max-model-len", "auto", ("--max-model-len", "auto")),
    ],
)
def test_words(key: str, value: Value, words: tuple[str, ...]) -> None:
    """Each type of value has its form on the command line."""
    assert render({key: value}) == words


def test_order_is_kept() -> None:
    """The arguments follow the order of the file."""
    assert render({"seed": 1, "dtype": "auto"}) == ("--seed", "1", "--dtype", "auto")


def test_unknown_name() -> None:
    """A name that vLLM does not have is a mistake of the caller."""
    with pytest.raises(KeyError):
        render({"sed": 1})
