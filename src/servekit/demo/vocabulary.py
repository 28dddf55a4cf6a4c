"""The tokenizer of a random model: Gemma 4's special tokens and byte fallback, and made-up words to fill it.

The tokenizer is a BPE model without merges that takes a word whole when the vocabulary has it, and splits it
into characters otherwise. So every generated token is readable text, and decoded text encodes to the same
tokens again: a benchmark that asks for prompts of N tokens gets N.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Stands for a space inside tokens, as in all Gemma tokenizers."""

BASIC = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
"""Tokens 0 to 4 of every Gemma vocabulary."""

GOOGLE_IDS = {
    "<|tool>": 46,
    "<tool|>": 47,
    "<|tool_call>": 48,
    "<tool_call|>": 49,
    "<|tool_response>": 50,
    "<tool_response|>": 51,
    '<|"|>': 52,
    "<|think|>": 98,
    "<|channel>": 100,
    "<channel|>": 101,
    "<|turn>": 105,
    "<turn|>": 106,
    "<|image>": 255_999,
    "<|audio>": 256_000,
    "<|image|>": 258_880,
    "<|audio|>": 258_881,
    "<image|>": 258_882,
    "<audio|>": 258_883,
    "<|video|>": 258_884,
}
"""Gemma 4's own tokens where Google's vocabulary of 262,144 has them; smaller ones have them from 5 on."""

COMMON_TEXT = """
a about after again air all also always an and animal another answer any are around as ask at away back be
because been before below between big book both boy but by call came can change city close come could
country day did different do does down each earth end even every example eye face family far father few find
first follow food for found four from get give go good great had hand hard has have he head help her here
high him his home house how I if important in is it its just keep kind know land large last learn leave
letter life light like line little live long look made make man many may me mean men might more most mother
mountain move much must my name near need never new next night no not now number of off often old on once
one only open or other our out over own page paper people place plant play point read right river run said
same saw say school sea second see seem sentence set she should show side small so some song soon sound
spell start state still stop story study such take talk tell than that the their them then there these they
thing think this those three through time to together too took tree try turn two under until up us use very
walk want was watch water way we well went were what when where which while white who why will with without
word work world would write year you young your
"""

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"

STRIDE = 30_011
"""A prime that divides no number of syllables, so that stepping by it meets every word once."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and the ids of the special ones by token."""

    tokens: tuple[str, ...]
    special: dict[str, int]

    @property
    def quiet(self) -> tuple[int, ...]:
        """Ids a model should not generate: special tokens, bytes, single characters; all but the words."""
        return tuple(
            number for number, token in enumerate(self.tokens) if not (token.startswith(SPACE) and token[1:].isalpha())
        )


def vocabulary(size: int) -> Vocabulary:
    """Make a vocabulary of exactly `size` tokens, at least 512."""
    google = size > max(GOOGLE_IDS.values())
    own = GOOGLE_IDS if google else {token: number for number, token in enumerate(GOOGLE_IDS, start=len(BASIC))}
    special = {token: number for number, token in enumerate(BASIC)} | own
    token_of = {number: token for token, number in special.items()}
    others = _ordinary_tokens()
    return Vocabulary(tuple(token_of.get(number) or next(others) for number in range(size)), special)


def tokenizer(words: Vocabulary) -> dict[str, object]:
    """Return the content of `tokenizer.json` (the format of the tokenizers library, version 1.0)."""
    bos, text = {"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, number in sorted(words.special.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": rf"{SPACE}?\p{{L}}+"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, bos, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [words.special["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": True,
            "vocab": {token: number for number, token in enumerate(words.tokens)},
            "merges": [],
        },
    }


def _ordinary_tokens() -> Iterator[str]:
    """Bytes, printable characters, common words, then made-up words of two and three syllables."""
    yield from (f"<0x{byte:02X}>" for byte in range(256))
    yield from "\t\n"
    yield from (chr(code) for code in range(ord("!"), ord("~") + 1))
    yield SPACE
    common = COMMON_TEXT.split()
    yield from (SPACE + word for word in common)
    known = frozenset(common)
    yield from (SPACE + word for word in _made_up_words() if word not in known)


def _made_up_words() -> Iterator[str]:
    """All words of two, then of three syllables; the stride mixes them, so that neighbours do not look alike."""
    syllables = ["".join(pair) for pair in product(CONSONANTS, VOWELS)]
    base = len(syllables)
    for length in (2, 3):
        for step in range(base**length):
            number = step * STRIDE % base**length
            yield "".join(syllables[number // base**place % base] for place in range(length))
