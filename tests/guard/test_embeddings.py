"""Per-layer embeddings in host memory, inside the installed vLLM: its loader fills the table, its layer reads it.

The CPU build has no pinned memory, so the view that vLLM makes of it is replaced by the tensor itself.
"""

from pathlib import Path
from typing import Any

import pytest

from servekit.demo.build import build_demo_model
from tests.guard.test_inside_vllm import run_inside

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROGRAM = """
import json, logging, os, sys, torch
from types import SimpleNamespace
from safetensors import safe_open
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader import get_model
from vllm.utils import platform_utils, torch_utils
from vllm.v1.worker.worker_base import WorkerBase
from servekit_guard.core import embeddings

plain, views, warned = VocabParallelEmbedding.__init__, [], []
embeddings.logger.warning = lambda text, *values: warned.append(text % values)
platform_utils.is_uva_available = lambda: True

def view(tensor):
    if os.environ.get("NO_PINNED_MEMORY"):
        raise RuntimeError("cudaHostAlloc failed: out of memory")
    views.append(tensor)
    return tensor

torch_utils.get_accelerator_view_from_cpu_tensor = view

def load(folder, setting="", pinnable=True):
    VocabParallelEmbedding.__init__ = plain
    os.environ.update({embeddings.VARIABLE: setting, "NO_PINNED_MEMORY": "" if pinnable else "1"})
    embeddings.register()
    limits = {"image": 1, "audio": 0, "video": 0}
    args = EngineArgs(folder, dtype="bfloat16", enforce_eager=True, max_model_len=512, limit_mm_per_prompt=limits)
    config = args.create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, "file://" + folder + "/rendezvous", 0, "gloo")
            initialize_model_parallel(1, 1)
        try:
            return get_model(vllm_config=config)
        except RuntimeError as error:
            return str(error)

def rows(model):
    return model.language_model.model.get_per_layer_inputs(torch.arange(256))

found = {}
for folder in FOLDERS:
    on_gpu, on_host = load(folder), load(folder, "host")
    table = on_host.language_model.model.embed_tokens_per_layer
    with safe_open(folder + "/model.safetensors", "pt") as file:
        [name] = [each for each in file.keys() if "embed_tokens_per_layer" in each]
        stored = file.get_tensor(name)
    worker = SimpleNamespace(get_model=lambda: on_host)
    found[folder] = {
        "views": [each.data_ptr() == table.weight.data_ptr() for each in views],
        "marked": table.weight._vllm_is_uva_offloaded,
        "filled": torch.equal(table.weight, stored.to(table.weight.dtype)),
        "gathered": torch.equal(rows(on_gpu), rows(on_host)),
        "not zero": bool(rows(on_host).any()),
        "report": getattr(WorkerBase, embeddings.REPORT)(worker),
    }
    views.clear()
found["fallen back"] = torch.equal(rows(on_gpu), rows(load(folder, "auto", pinnable=False)))
found["refused"] = load(folder, "host", pinnable=False)
found["warned"] = warned
quantized = SimpleNamespace(quant_method=torch.nn.Identity())
try:
    embeddings.move(quantized)
except ValueError as error:
    found["quantized"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the program finds with a quantized and an unquantized checkpoint."""
    folders = []
    for quantized in (True, False):
        folders.append(str(tmp_path_factory.mktemp("checkpoint") / "demo"))
        build_demo_model(Path(folders[-1]), quantized=quantized)
    found = run_inside(PROGRAM.replace("FOLDERS", repr(folders)))
    return found | {"w4a16": found[folders[0]], "bf16": found[folders[1]]}


@pytest.mark.parametrize(("which", "activations"), [("w4a16", "bfloat16"), ("bf16", "none")])
def test_the_table_is_filled_and_read_where_it_is(found: Any, which: str, activations: str) -> None:
    """vLLM's loader fills the view with the stored table, and the layer gathers the same rows from it."""
    one = found[which]
    assert one["views"] == [True]
    assert (one["marked"], one["filled"], one["gathered"], one["not zero"]) == (True, True, True, True)
    assert one["report"] == {"per-layer-embeddings": "cpu", "pinned_host_bytes": 0, "activations": activations}


def test_a_host_that_cannot_pin(found: Any) -> None:
    """`auto` falls back to the GPU and warns; `host` ends the start with what to do."""
    assert found["fallen back"]
    [warning] = found["warned"]
    assert "out of memory; they stay on the GPU" in warning
    assert "cudaHostAlloc failed: out of memory; free host memory, or set SERVEKIT_EMBEDDINGS=auto" in found["refused"]


def test_a_quantized_table_stays(found: Any) -> None:
    """A method that replaces its tensors after loading keeps the table on the GPU."""
    assert found["quantized"] == "they are quantized (Identity)"
