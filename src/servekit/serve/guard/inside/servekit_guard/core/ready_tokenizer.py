"""EngineCore's tokenizer and its table for structured output, ready before vLLM asks for them.

vLLM 0.20.2 reads the tokenizer in EngineCore before it loads the model, and the backend `guidance` makes a table of it
at the first request with structured output (`v1/structured_output/backend_guidance.py`). With Gemma's 262,144 words
each takes a second that holds Python's lock. The process that `early_core` forks has nothing to do meanwhile: it calls
the same functions with the same arguments, and vLLM finds what they returned in caches, its own for tokenizers and one
around llguidance's function for the table. With other arguments it does not find them, and calls the functions itself.

vLLM's scheduler builds the image processor before any request (`MultiModalBudget`), and Gemma's makes `<|video|>` a
special token of the tokenizer. So it is built here before the table too: that word must not be a text for a grammar.
"""

import contextlib
import importlib
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

ELSEWHERE = ("--tokenizer", "--revision=", "--trust-remote-code", "--skip-tokenizer-init", "--runner")
"""How flags of vLLM begin that make it read another tokenizer, or in another way."""


def prepare(command: Sequence[str]) -> None:
    """Read the tokenizer of `command`, which is `vllm serve MODEL ...`, and make its table; nothing for another.

    Raises an exception if vLLM would have to download the model.
    """
    serve, model, *flags = *command[1:], "", ""
    if serve != "serve" or any(flag.startswith(ELSEWHERE) for flag in flags):
        return
    configs: Any = importlib.import_module("vllm.transformers_utils.config")
    files: Any = importlib.import_module("vllm.transformers_utils.repo_utils")
    processors: Any = importlib.import_module("vllm.transformers_utils.processor")
    guidance: Any = importlib.import_module("llguidance.hf")
    importlib.import_module("llguidance.torch")
    revision = flags[flags.index("--revision") + 1] if "--revision" in flags else None
    folder = files.get_model_path(model, revision)
    tokenizer = importlib.import_module("vllm.tokenizers.registry").cached_tokenizer_from_config(
        SimpleNamespace(  # what it reads of vLLM's ModelConfig
            skip_tokenizer_init=False,
            tokenizer=folder,
            tokenizer_mode="auto",
            tokenizer_revision=revision,
            trust_remote_code=False,
            runner_type="generate",
        )
    )
    with contextlib.suppress(Exception):  # a model of text alone has none
        processors.cached_get_processor_without_dynamic_kwargs(folder, revision=revision, tokenizer=tokenizer)
    words = configs.get_hf_text_config(configs.get_config(folder, trust_remote_code=False)).vocab_size
    guidance.from_tokenizer = lru_cache(maxsize=1)(guidance.from_tokenizer)
    guidance.from_tokenizer(tokenizer, max(words, len(tokenizer)))
