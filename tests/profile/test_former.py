"""Arguments of older releases: what the error says to do instead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from servekit.profile.argument_table import engine_arguments, nearest
from servekit.profile.former import advice

Write = Callable[[str], Path]
Refused = Callable[..., list[str]]

FORMER = (
    "cuda-graph-sizes",
    "device",
    "disable-async-output-proc",
    "disable-frontend-multiprocessing",
    "disable-log-requests",
    "disable-logprobs-during-spec-decoding",
    "disable-mm-preprocessor-cache",
    "enable-lora-bias",
    "enable-prompt-adapter",
    "enable-reasoning",
    "eplb-step-interval",
    "eplb-window-size",
    "guided-decoding-backend",
    "guided-decoding-disable-any-whitespace",
    "long-lora-scaling-factors",
    "lora-extra-vocab-size",
    "max-prompt-adapter-token",
    "max-prompt-adapters",
    "max-seq-len-to-capture",
    "multi-step-stream-outputs",
    "ngram-prompt-lookup-max",
    "ngram-prompt-lookup-min",
    "num-lookahead-slots",
    "num-redundant-experts",
    "num-scheduler-steps",
    "num-speculative-tokens",
    "override-neuron-config",
    "override-pooler-config",
    "preemption-mode",
    "prompt-adapters",
    "qlora-adapter-name-or-path",
    "quantization-param-path",
    "rope-scaling",
    "rope-theta",
    "scheduler-delay-factor",
    "spec-decoding-acceptance-method",
    "speculative-disable-by-batch-size",
    "speculative-disable-mqa-scorer",
    "speculative-draft-tensor-parallel-size",
    "speculative-max-model-len",
    "speculative-model",
    "speculative-model-quantization",
    "swap-space",
    "task",
    "tokenizer-pool-extra-config",
    "tokenizer-pool-size",
    "tokenizer-pool-type",
    "typical-acceptance-sampler-posterior-alpha",
    "use-v2-block-manager",
    "worker-use-ray",
)
"""Arguments of vLLM 0.6 to 0.10 that 0.20.2 does not have."""


@pytest.mark.parametrize("name", FORMER)
def test_a_former_argument_gets_advice(refused: Refused, write: Write, smallest: str, name: str) -> None:
    """Each is refused as unknown, with what to do today; a key that the advice names exists."""
    assert name not in engine_arguments()
    (line,) = refused(write(f"{smallest}{name}: 1\n"))
    message, _, remedy = line.partition("; ")
    assert message == f"profile.yaml:8: error: {name}: is not a vLLM 0.20.2 argument"
    assert "did you mean" not in remedy
    for key in (word.strip("`:").partition(":")[0] for word in remedy.split() if word.startswith("`")):
        assert key in engine_arguments(), remedy


def test_no_advice_about_todays_arguments() -> None:
    """No pattern of former arguments matches one that vLLM has."""
    assert [name for name in engine_arguments() if advice(name) and not name.startswith("speculative-")] == []


def test_suggestions_are_near() -> None:
    """A word with two letters swapped finds its argument; words of other servers find none that is only like them."""
    names = tuple(engine_arguments())
    swapped = {name: name[:5] + name[6] + name[5] + name[7:] for name in names if len(name) > 12}
    assert [name for name, word in swapped.items() if nearest(word, names) != name] == []
    others = "n-gpu-layers ctx-size flash-attn mem-fraction-static enable-torch-compile num-shard max-batch-size"
    assert [word for word in others.split() if nearest(word, names)] == []
