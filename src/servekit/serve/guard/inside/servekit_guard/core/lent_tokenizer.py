"""One tokenizer for each image processor, instead of six; one copy for the renderer's two.

vLLM 0.20.2 gives Hugging Face's processor the tokenizer that it has, and builds each processor twice, once without the
tokenizer to see which arguments the class knows (`cached_get_processor_without_dynamic_kwargs` in
`transformers_utils/processor.py`). transformers 5.8 reads the tokenizer's files each time, copies the given tokenizer
with the other arguments, and drops all of them but the given one (`ProcessorMixin.from_args_and_dict`). With Gemma's
262,144 words that takes seconds for each processor, three in the server and one in EngineCore. Here the given tokenizer
takes the place of what would be read, and is no argument that would be copied.

vLLM's renderer copies its tokenizer for each of its two processors (`renderers/base.py`), since the Rust code forbids
some calls from two threads. Both processors run in the same threads, so they get the same copy. The server builds a
fourth processor when EngineCore is ready, only for its chat template (`_try_get_processor_chat_template` in
`renderers/hf.py`); it gets that copy too. Gemma's processor adds a token to the tokenizer that it gets, which must not
change how the server itself reads a text. transformers copies the Rust tokenizer that it has just read from its file
(`tokenization_utils_tokenizers.py`); nothing else has it, so it is not copied.
"""

import copy
import importlib
from contextvars import ContextVar
from functools import lru_cache, wraps
from types import SimpleNamespace
from typing import Any

_LENT: ContextVar[Any] = ContextVar("lent", default=None)
copied = lru_cache(maxsize=1)(copy.deepcopy)
"""The copy of the server's tokenizer that all its processors have."""


def register() -> None:
    """Change vLLM's and transformers' functions in this process; an unknown transformers stays as it is."""
    vllm: Any = importlib.import_module("vllm.transformers_utils.processor")
    mixin: Any = importlib.import_module("transformers.processing_utils").ProcessorMixin
    load = getattr(mixin, "_load_tokenizer_from_pretrained", None)
    if load is not None:
        mixin._load_tokenizer_from_pretrained = classmethod(lent(load.__func__))  # noqa: SLF001 - there is no other way
        vllm.cached_get_processor = lru_cache(without_argument(vllm.get_processor))
        name = "cached_get_processor_without_dynamic_kwargs"
        setattr(vllm, name, lending(getattr(vllm, name)))
        renderer: Any = importlib.import_module("vllm.renderers.hf")
        name = "_try_get_processor_chat_template"
        setattr(renderer, name, lending(getattr(renderer, name), copied))
        reader: Any = importlib.import_module("transformers.tokenization_utils_tokenizers")
        reader.copy = copying_by(lambda tokenizer: tokenizer)
    renderers: Any = importlib.import_module("vllm.renderers.base")
    renderers.copy = copying_by(copied)


def copying_by(deepcopy: Any) -> Any:
    """Return Python's module `copy` with this `deepcopy`, for one module that uses it for tokenizers alone."""
    return SimpleNamespace(**{**vars(copy), "deepcopy": deepcopy})


def lending(build: Any, of_first: Any = None) -> Any:
    """Return vLLM's function that builds a processor, which then lends it a tokenizer.

    That is the one that the function gives the processor, or what `of_first` makes of its own first argument.
    """

    @wraps(build)
    def build_with_lent(*arguments: Any, **named: Any) -> Any:
        before = _LENT.set(of_first(arguments[0]) if of_first else named.get("tokenizer"))
        try:
            return build(*arguments, **named)
        finally:
            _LENT.reset(before)

    return build_with_lent


def without_argument(get: Any) -> Any:
    """Return vLLM's function that makes a processor, without the tokenizer as an argument if it is lent."""

    @wraps(get)
    def get_with_lent(*arguments: Any, tokenizer: Any = None, **named: Any) -> Any:
        if tokenizer is None or tokenizer is _LENT.get():
            processor = get(*arguments, **named)
            if tokenizer is None or getattr(processor, "tokenizer", None) is tokenizer:
                return processor
        return get(*arguments, tokenizer=tokenizer, **named)

    return get_with_lent


def lent(load: Any) -> Any:
    """Return transformers' function that reads the tokenizer of a processor, which then prefers the lent one."""

    @wraps(load)
    def lent_or_loaded(processor: Any, kind: str, *arguments: Any, **named: Any) -> Any:
        tokenizer = _LENT.get()
        if tokenizer is not None and kind == "tokenizer":  # others are in folders of their own
            return tokenizer
        return load(processor, kind, *arguments, **named)

    return lent_or_loaded
