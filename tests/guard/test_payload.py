"""Which request bodies must not reach the engine."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servekit.serve.guard.inside.servekit_guard.payload import MANY_STRINGS, SMALL_BODY_BYTES, objection

VOCABULARY = 1000
SEQUENCES = 8


def refused_param(fields: Any, padding_bytes: int = 0) -> str | None:
    """Return the field a body is refused for, or None when it may pass."""
    refusal = objection(json.dumps(fields).encode() + b" " * padding_bytes, VOCABULARY, SEQUENCES)
    return refusal.param if refusal else None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mm_processor_kwargs": {"do_resize": False}}, "mm_processor_kwargs"),
        ({"media_io_kwargs": {"image": {}}}, "media_io_kwargs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids"),
        ({"stop_token_ids": {"0": 1}}, "stop_token_ids"),
        ({"n": SEQUENCES + 1}, "n"),
        ({"n": "2"}, "n"),
        ({"n": 1e300}, "n"),
        ({"n": float("inf")}, "n"),
        ({"best_of": 100}, "n"),
        ({"prompt": ["a"] * (SEQUENCES + 1)}, "n"),
        ({"prompt": [[1]] * 3, "n": 3}, "n"),
    ],
)
def test_a_harmful_field_is_named(fields: dict[str, Any], param: str) -> None:
    """The refusal names the field, so the client can leave it out."""
    assert refused_param(fields) == refused_param(fields, SMALL_BODY_BYTES) == param


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "mm_processor_kwargs"}]},
        {"mm_processor_kwargs": None, "media_io_kwargs": {}},
        {"stop_token_ids": [0, VOCABULARY - 1]},
        {"stop_token_ids": None},
        {"n": SEQUENCES},
        {"n": None, "prompt": "hello"},
        {"n": -3},
        {"prompt": list(range(500))},
        {"prompt": ["a"] * SEQUENCES},
        {"prompt": []},
        {"metadata": {"n": 10**9}},
    ],
)
def test_an_ordinary_body_passes(fields: Any) -> None:
    """What does no harm passes, also where a dangerous name stands in a text or deeper down."""
    assert refused_param(fields) is None
    assert refused_param(fields, SMALL_BODY_BYTES) is None


@pytest.mark.parametrize(
    "body",
    [
        rb'{"mm_processor\u005fkwargs": {"do_resize": false}}',
        rb'{"\u006d\u006d_processor_kwargs": {"do_resize": false}}',
        b'{"mm_processor_kwargs": null, "mm_processor_kwargs": {"do_resize": false}}',
        '{"mm_processor_kwargs": {"do_resize": false}}'.encode("utf-16"),
        '{"mm_processor_kwargs": {"do_resize": false}}'.encode("utf-16-le"),
        '{"mm_processor_kwargs": {"do_resize": false}}'.encode("utf-32"),
        '{"mm_processor_kwargs": {"do_resize": false}}'.encode("utf-8-sig"),
    ],
)
def test_a_key_cannot_be_hidden(body: bytes) -> None:
    """Escapes, doubled keys and other encodings are read as vLLM reads them, in a small body and in a large one."""
    assert json.loads(body)["mm_processor_kwargs"]
    encoding = json.detect_encoding(body).removesuffix("-sig")
    space = " ".encode(encoding if "-le" in encoding or encoding == "utf-8" else f"{encoding}-le")
    for sent in (body, body + space * SMALL_BODY_BYTES):
        refusal = objection(sent, VOCABULARY, SEQUENCES)
        assert refusal is not None
        assert refusal.param == "mm_processor_kwargs"


@pytest.mark.parametrize("strings", [0, 1, MANY_STRINGS // 2, 2 * MANY_STRINGS])
def test_a_key_behind_many_strings_is_found(strings: int) -> None:
    """A large body is searched from quote to quote, or parsed where there are too many of them."""
    image, text = "A" * SMALL_BODY_BYTES, ["text"] * strings
    harmless = {"messages": text, "image": image}
    assert refused_param(harmless) is None
    assert refused_param({"image": image, "messages": text, "mm_processor_kwargs": {"do_resize": False}})


def test_what_is_no_json_object_is_refused() -> None:
    """Broken JSON with a dangerous key, nested beyond measure, or no object at all is refused here."""
    for body in (b'{"n": ', b'{"n":' + b"[" * 100_000, b'"\\u"', b"", b"null", b" [1, 2]", b'"n"', b"\xff"):
        for sent in (body, b" " * SMALL_BODY_BYTES + body):
            refusal = objection(sent, VOCABULARY, SEQUENCES)
            assert refusal is not None
            assert refusal.status == 400


def test_a_number_over_64_bits_is_refused() -> None:
    """What cannot be sent to the engine is the client's mistake."""
    assert refused_param({"top_k": 2**63}) == "top_k"
    assert refused_param({"top_k": 2**63 - 1, "seed": -(2**63)}) is None


def test_without_a_known_vocabulary_no_stop_token_passes() -> None:
    """What cannot be checked is refused."""
    assert objection(b'{"stop_token_ids": [1]}', None, SEQUENCES) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from(["n", "best_of", "prompt", "stop_token_ids", "mm_processor_kwargs", "media_io_kwargs", "x"])


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_any_json_is_judged(fields: dict[str, Any]) -> None:
    """Whatever types the fields have, the answer is a refusal or None, and the rules hold for what passes."""
    if refused_param(fields) is None:
        assert fields.get("mm_processor_kwargs") in (None, {})
        assert fields.get("media_io_kwargs") in (None, {})
        tokens = fields.get("stop_token_ids") or []
        assert all(0 <= token < VOCABULARY for token in tokens)


@given(st.dictionaries(NAMES, JSON, max_size=5), st.integers(0, 2 * SMALL_BODY_BYTES))
def test_a_large_body_is_judged_as_a_small_one(fields: dict[str, Any], padding_bytes: int) -> None:
    """Searching before parsing misses none of the fields by name."""
    param = refused_param(fields)
    assert refused_param({"image": "A" * padding_bytes} | fields) in ((param, None) if param == "x" else (param,))


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(body: bytes) -> None:
    """Bytes that are no JSON at all are left to vLLM or refused, and never raise."""
    objection(body, VOCABULARY, SEQUENCES)
