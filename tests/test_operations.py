"""docs/operations.md quotes servekit's messages verbatim, so that a search for a message finds it."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

QUOTES = (
    "the engine's server has not answered for",
    "the engine reports on /health that it is dead",
    "the engine hangs: ",
    "killed by signal ",
    "the engine runs with ",
    "the engine is up but does not answer: ",
    " did not end within ",
    "not ready within ",
    "the guard does not answer",
    "the engine does not take requests",
)


def constants(path: Path) -> str:
    """Return every string of a module, one per line: parts of f-strings too, but no docstrings."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    bare = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    found = (node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in bare)
    return "\n".join(text for text in found if isinstance(text, str))


@pytest.fixture(scope="module")
def strings() -> str:
    """Every string in servekit's source."""
    return "\n".join(constants(path) for path in sorted((ROOT / "src").rglob("*.py")))


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_exists(quote: str, strings: str) -> None:
    """The page contains the text, and so does the source."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert quote.strip() in page.replace("\n", " ")
    assert quote in strings
