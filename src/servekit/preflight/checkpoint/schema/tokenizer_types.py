"""The shape of tokenizer.json that the tokenizers library reads; it rejects any other with one unclear sentence.

Of the pieces that make up a tokenizer (normalizers, decoders, ...) this module knows Gemma's; others pass.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, Discriminator, Field, NonNegativeInt, Tag

from servekit.preflight.checkpoint.schema.faults import Strict, faults_of


class _Token(Strict):
    id: NonNegativeInt
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _Literal(Strict, extra="forbid"):
    String: str


class _Regex(Strict, extra="forbid"):
    Regex: str


class _Replace(Strict):
    pattern: _Literal | _Regex
    content: str


class _Split(Strict):
    type: Literal["Split"]
    pattern: _Literal | _Regex
    behavior: Literal["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    invert: bool


class _Special(Strict):
    id: str
    ids: list[NonNegativeInt]
    tokens: list[str]


class _Text(Strict):
    id: Literal["A", "B"]
    type_id: NonNegativeInt


class _Mark(Strict):
    id: str
    type_id: NonNegativeInt


class _TextPlace(Strict, extra="forbid"):
    Sequence: _Text


class _MarkPlace(Strict, extra="forbid"):
    SpecialToken: _Mark


class _Template(Strict):
    single: list[_TextPlace | _MarkPlace]
    pair: list[_TextPlace | _MarkPlace]
    special_tokens: dict[str, _Special]


class _Pieces(Strict):
    type: Literal["Sequence"]
    normalizers: list["_Piece"] = Field([])
    pretokenizers: list["_Piece"] = Field([])
    processors: list["_Piece"] = Field([])
    decoders: list["_Piece"] = Field([])


_NAMES = (
    *("BPEDecoder", "BertNormalizer", "BertPreTokenizer", "BertProcessing", "ByteFallback", "ByteLevel", "CTC"),
    *("CharDelimiterSplit", "Digits", "FixedLength", "Fuse", "Lowercase", "Metaspace", "NFC", "NFD", "NFKC", "NFKD"),
    *("Nmt", "Precompiled", "Prepend", "Punctuation", "RobertaProcessing", "Strip", "StripAccents"),
    *("UnicodeScripts", "Whitespace", "WhitespaceSplit", "WordPiece"),
)


class _Other(Strict):
    type: str = Field(pattern=f"^({'|'.join(_NAMES)})$")


def _kind(piece: Any) -> str:
    """Tell pieces apart as tokenizers does: by their keys before their `type`."""
    keys = piece.keys() if isinstance(piece, dict) else set()
    signs = {"content": "Replace", "behavior": "Split", "single": "Template"}
    signs |= dict.fromkeys(("normalizers", "pretokenizers", "processors", "decoders"), "Pieces")
    return next((kind for key, kind in signs.items() if key in keys), "Other")


_Piece = Annotated[
    Annotated[_Replace, Tag("Replace")]
    | Annotated[_Split, Tag("Split")]
    | Annotated[_Template, Tag("Template")]
    | Annotated[_Pieces, Tag("Pieces")]
    | Annotated[_Other, Tag("Other")],
    Discriminator(_kind),
]


class _Bpe(Strict):
    vocab: dict[str, NonNegativeInt]
    merges: list[Any]
    dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool | None = None
    byte_fallback: bool | None = None
    ignore_merges: bool | None = None


class _Vocabulary(Strict):
    type: Literal["Unigram", "WordLevel", "WordPiece"]
    vocab: dict[str, NonNegativeInt] | list[Any]


class _Truncation(Strict):
    max_length: NonNegativeInt
    strategy: Literal["LongestFirst", "OnlyFirst", "OnlySecond"]
    stride: NonNegativeInt


class _Padding(Strict):
    strategy: Literal["BatchLongest"] | dict[Literal["Fixed"], NonNegativeInt]
    direction: Literal["Left", "Right"]
    pad_id: NonNegativeInt
    pad_type_id: NonNegativeInt
    pad_token: str


class _Tokenizer(Strict, extra="forbid"):
    version: Literal["1.0"] = "1.0"
    truncation: _Truncation | None = None
    padding: _Padding | None = None
    added_tokens: list[_Token] = Field([])
    normalizer: _Piece | None = None
    pre_tokenizer: _Piece | None = None
    post_processor: _Piece | None = None
    decoder: _Piece | None = None
    model: Annotated[
        Annotated[_Bpe, Tag("BPE")] | Annotated[_Vocabulary, Tag("other")],
        Discriminator(
            lambda model: "other" if isinstance(model, dict) and model.get("type", "BPE") != "BPE" else "BPE"
        ),
    ]


_TAGS = {"Replace", "Split", "Template", "Pieces", "Other", "BPE", "other"}


def tokenizer_faults(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong in a tokenizer.json, by dotted key."""
    return faults_of(_Tokenizer, tokenizer, tags=_TAGS)


class _AddedToken(Strict):
    content: str


_Named = str | _AddedToken


def _no_method(_: object) -> NoReturn:
    raise ValueError("must be left out: it has the name of a method of transformers' tokenizer")


def _existing(path: str) -> str:
    if not os.path.isfile(path):  # noqa: PTH113 - as transformers asks; Path raises where it may not look
        raise ValueError("names a file that does not exist, which transformers reads in place of tokenizer.json")
    return path


class _Settings(Strict):
    tokenizer_class: str | None = None
    tokenizer_file: Annotated[str, AfterValidator(_existing)] | None = None
    add_special_tokens: Annotated[Any, AfterValidator(_no_method)] = None
    padding: bool | Literal["longest", "max_length", "do_not_pad"] | None = None
    pad_to_multiple_of: int | None = None
    model_max_length: float | None = None
    padding_side: Literal["left", "right"] = "left"
    truncation_side: Literal["left", "right"] = "left"
    split_special_tokens: Literal[False] = False
    model_input_names: list[Any] | dict[str, Any] | str = Field([])
    added_tokens_decoder: dict[str, dict[str, Any]] = Field({})
    auto_map: dict[str, Any] = Field({})
    extra_special_tokens: list[Any] | dict[str, _Named] | None = None
    bos_token: _Named | None = None
    eos_token: _Named | None = None
    unk_token: _Named | None = None
    pad_token: _Named | None = None
    mask_token: _Named | None = None
    cls_token: _Named | None = None
    sep_token: _Named | None = None


def tokenizer_config_faults(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong in a tokenizer_config.json, by key."""
    return {key.partition(".")[0]: why for key, why in faults_of(_Settings, settings).items()}
