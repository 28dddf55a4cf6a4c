"""Arguments of older vLLM releases that 0.20.2 no longer has, and what to write today."""

import re
from collections.abc import Mapping
from typing import Final

_DEFAULT: Final = "take it out: vLLM always does so now"
_GONE: Final = "take it out: vLLM has nothing like it any more"
_GRAMMAR: Final = "take it out: servekit chooses the backend; the rest is in `structured-outputs-config:`"
_SPECULATIVE: Final = "write it into `speculative-config:`"
_EPLB: Final = "write it into `eplb-config:`"
_ROPE: Final = "write `hf-overrides: {text_config: {rope_parameters: ...}}` if the checkpoint's own value is wrong"

_NOW: Final[Mapping[str, str]] = {
    "use-v2-block-manager|disable-async-output-proc|worker-use-ray|engine-use-ray": _DEFAULT,
    "disable-log-requests": "take it out: requests are not logged",
    "enable-reasoning": "take it out: `reasoning-parser: gemma4` alone turns it on",
    "num-scheduler-steps|multi-step-stream-outputs": "take it out: `async-scheduling: true` does what it did",
    "swap-space|preemption-mode": "take it out: vLLM computes a preempted request again",
    "max-seq-len-to-capture|max-context-len-to-capture": "take it out, or write `max-cudagraph-capture-size:`",
    "cuda-graph-sizes": "write `cudagraph-capture-sizes:`",
    "disable-mm-preprocessor-cache": "write `mm-processor-cache-gb: 0`",
    "enable-multimodal-encoder-data-parallel": "write `mm-encoder-tp-mode: data`",
    "task": "take it out: `runner: generate` and `convert: none` say it now, and are the default for Gemma 4",
    "override-pooler-config": "write `pooler-config:`",
    "rope-scaling|rope-theta": _ROPE,
    "guided-decoding-.*": _GRAMMAR,
    "device": "set SERVEKIT_TARGET or --target instead",
    "disable-frontend-multiprocessing": "take it out: the guard needs the engine in a process of its own",
    "speculative-.*|num-speculative-tokens|ngram-prompt-lookup-(min|max)|spec-decoding-acceptance-method": _SPECULATIVE,
    "typical-acceptance-sampler-.*|disable-logprobs-during-spec-decoding|num-lookahead-slots": _GONE,
    "num-redundant-experts|eplb-(window-size|step-interval|log-balancedness)": _EPLB,
    "quantization-param-path": "take it out: scales come from the checkpoint",
    "tokenizer-pool-(size|type|extra-config)|scheduler-delay-factor|max-paddings": _GONE,
    "(enable-)?prompt-adapters?|max-prompt-adapter(s|-token)|lora-extra-vocab-size|enable-lora-bias": _GONE,
    "long-lora-scaling-factors|qlora-adapter-name-or-path|override-neuron-config|logits-processor-pattern": _GONE,
    "image-(input-type|token-id|input-shape|feature-size)|disable-image-processor|chat-template-text-format": _GONE,
}
"""What to do instead, by a regular expression that matches the whole name."""


def advice(name: str) -> str:
    """Return what to do about an argument that vLLM once had; an empty text if it never had one of this name."""
    return next((now for pattern, now in _NOW.items() if re.fullmatch(pattern, name)), "")
