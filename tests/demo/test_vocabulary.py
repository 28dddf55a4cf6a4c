"""The vocabulary and the tokenizer."""

import pytest

from servekit.demo.sizes import E4B, TINY
from servekit.demo.vocabulary import GOOGLE_IDS, SPACE, tokenizer, vocabulary


@pytest.mark.parametrize("size", [TINY.text.vocabulary, E4B.text.vocabulary])
def test_vocabulary_has_exactly_its_size_and_no_token_twice(size: int) -> None:
    """Every id of the embedding table has its own token, so any generated id has a text."""
    words = vocabulary(size)
    assert len(words.tokens) == len(set(words.tokens)) == size
    assert all(words.tokens[number] == token for token, number in words.special.items())


def test_large_vocabulary_has_googles_ids() -> None:
    """Gemma's special tokens have the ids of Google's tokenizer."""
    words = vocabulary(E4B.text.vocabulary)
    assert GOOGLE_IDS.items() <= words.special.items()
    assert words.tokens[:5] == ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def test_all_but_words_are_quiet() -> None:
    """Special tokens, bytes and single characters are quiet, words are not."""
    words = vocabulary(TINY.text.vocabulary)
    quiet = {words.tokens[number] for number in words.quiet}
    assert set(words.special) <= quiet
    assert {"<0x00>", "<0xFF>", "A", "~", "\n", SPACE} <= quiet
    assert f"{SPACE}house" not in quiet
    assert len(quiet) < len(words.tokens) / 2


def test_tokenizer_declares_every_special_token() -> None:
    """Special tokens are added tokens, in the order of their ids."""
    words = vocabulary(TINY.text.vocabulary)
    added = tokenizer(words)["added_tokens"]
    assert isinstance(added, list)
    assert {entry["content"]: entry["id"] for entry in added} == words.special
    assert [entry["id"] for entry in added] == sorted(words.special.values())
