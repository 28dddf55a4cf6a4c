"""The image processor that the installed vLLM builds, with the tokenizer that it has instead of one read again."""

from pathlib import Path

import pytest

from tests.guard.test_inside_vllm import run_inside

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROGRAM = """
import copy, json
from vllm.transformers_utils import processor as processors
from vllm.tokenizers.registry import get_tokenizer
from transformers import Gemma4Processor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from servekit_guard.core import lent_tokenizer

model, read = {model!r}, []
load = PreTrainedTokenizerBase._from_pretrained.__func__

@classmethod
def counted(*given, **named):
    read.append(1)
    return load(*given, **named)

PreTrainedTokenizerBase._from_pretrained = counted

def built(tokenizer):
    read.clear()
    make = processors.cached_get_processor_without_dynamic_kwargs
    return make(model, processor_cls=Gemma4Processor, tokenizer=tokenizer)

def seen(processor, tokenizer):
    values = {{name: repr(value) for name, value in sorted(vars(processor).items())}}
    return {{"read": len(read), "given": processor.tokenizer is tokenizer, "values": values}}

first, second = (get_tokenizer(model) for _ in range(2))
report = {{"vllm": seen(built(first), first)}}
lent_tokenizer.register()
report["servekit"] = seen(built(first), first)
report["another"] = seen(built(second), second)
report["none"] = seen(processors.cached_get_processor(model, processor_cls=Gemma4Processor), None)
print(json.dumps(report))
"""


def test_processors_are_vllms_without_reading_the_tokenizer(checkpoint: Path) -> None:
    """Each has the tokenizer it was given and is otherwise vLLM's; one that is given none reads it."""
    report = run_inside(PROGRAM.format(model=str(checkpoint)))
    assert report["vllm"]["read"] == 2
    assert report["servekit"] == report["vllm"] | {"read": 0}
    assert report["another"] == report["servekit"]
    assert report["none"]["read"] == 1
