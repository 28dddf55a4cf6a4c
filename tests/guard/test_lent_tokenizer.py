"""Tokenizers inside the installed vLLM: lent to the image processors, and read before EngineCore asks for them."""

import json
import shutil
from pathlib import Path

import pytest

from servekit.serve.engine import early_core
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
from vllm.renderers import base, hf
processors.cached_get_processor.cache_clear()
bare = get_tokenizer({bare!r})
before = bare.backend_tokenizer.to_str()
read.clear()
report["template"] = [len(hf._try_get_processor_chat_template(bare, trust_remote_code=False)), len(read)]
report["unchanged"] = bare.backend_tokenizer.to_str() == before
report["adds"] = base.copy.deepcopy(bare).backend_tokenizer.to_str() != before
texts = [each.backend_tokenizer.to_str() for each in (first, get_tokenizer(model))]
report["equal"] = texts[0] == texts[1]
copies = [base.copy.deepcopy(second) for _ in range(2)]
report["copies"] = len({{id(second), *map(id, copies)}})
print(json.dumps(report))
"""


def without_video(checkpoint: Path, folder: Path) -> str:
    """Copy the checkpoint's small files to `folder`, where `<|video|>` is a word like others; return its name."""
    for file in (*checkpoint.glob("*.json"), *checkpoint.glob("*.jinja")):
        shutil.copy(file, folder)
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] != "<|video|>"]
    (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    return str(folder)


def test_processors_are_vllms_without_reading_the_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    """Each has the tokenizer it was given and is otherwise vLLM's; one that is given none reads it.

    Gemma's processor adds `<|video|>`: where the checkpoint has no such token, the server's own tokenizer gets none.
    """
    report = run_inside(PROGRAM.format(model=str(checkpoint), bare=without_video(checkpoint, tmp_path)))
    assert report["vllm"]["read"] == 2
    assert report["servekit"] == report["vllm"] | {"read": 0}
    assert report["another"] == report["servekit"]
    assert report["none"]["read"] == 1
    assert report["template"] == [len((checkpoint / "chat_template.jinja").read_text()), 0]
    assert (report["unchanged"], report["adds"]) == (True, True)
    assert report["equal"]
    assert report["copies"] == 2, "the renderer's tokenizer and one copy for both of its processors"


READY = """
import contextlib, importlib.util, json
from types import SimpleNamespace
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import registry as models
from vllm.tokenizers.registry import cached_get_tokenizer, cached_tokenizer_from_config
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from servekit_guard.core import lent_tokenizer, ready_tokenizer
import llguidance.hf

lent_tokenizer.register()

model, made = {model!r}, []
models._run_in_subprocess = lambda inspect: inspect()

def counted(name, function):
    return lambda *given, **named: made.append(name) or function(*given, **named)

load = PreTrainedTokenizerBase._from_pretrained.__func__
PreTrainedTokenizerBase._from_pretrained = classmethod(counted("tokenizer", load))
llguidance.hf.LLTokenizer = counted("table", llguidance.hf.LLTokenizer)
for words in ([], ["bench"], ["serve", model, "--tokenizer=other"], ["serve", "owner/name"]):
    with contextlib.suppress(AssertionError):
        ready_tokenizer.prepare(["vllm", *words])
report = {{"nothing": list(made)}}
ready_tokenizer.prepare(["vllm", "serve", model, "--revision", "abc"])
report["prepared"] = list(made)
config = EngineArgs(model=model, revision="abc").create_model_config()
outputs = SimpleNamespace(disable_any_whitespace=False, disable_additional_properties=False)
tokenizer = cached_tokenizer_from_config(config)
settings = SimpleNamespace(structured_outputs_config=outputs)
GuidanceBackend(settings, tokenizer=tokenizer, vocab_size=config.get_vocab_size())
report["asked"] = list(made)
report["special"] = "<|video|>" in [each.content for each in tokenizer.added_tokens_decoder.values() if each.special]
report["unknown"] = [name for name in {names!r} if importlib.util.find_spec(name) is None]
print(json.dumps(report))
"""


def test_vllm_finds_what_was_read_before(checkpoint: Path, tmp_path: Path) -> None:
    """vLLM's own configuration asks for the tokenizer and the table that are ready; every named module exists.

    The table is that of the tokenizer with the processor's token, as vLLM makes it.
    """
    model = without_video(checkpoint, tmp_path)
    report = run_inside(READY.format(model=model, names=early_core.OWN + early_core.LATER))
    made = ["tokenizer", "table"]
    assert report == {"nothing": [], "prepared": made, "asked": made, "special": True, "unknown": []}
