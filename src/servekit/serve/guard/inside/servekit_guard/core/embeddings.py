"""Gemma 4's table of per-layer embeddings in pinned host memory, which the GPU reads in place.

The table is more than half of the weights of a 4-bit gemma-4-E4B, and a token reads one row of it (21.5 KB). vLLM
0.20.2 can offload decoder layers only (`model_executor/offloader`), so `offload` changes the class that makes the
table. vLLM gathers from it outside its CUDA graphs when the model takes images (`embed_input_ids` in
`model_executor/models/gemma4_mm.py`), and inside them otherwise: the view is a CUDA tensor at a fixed address.
"""

import contextlib
import ctypes
import importlib
import logging
import os
from collections.abc import Iterator
from functools import wraps
from typing import Any

TABLE = "embed_tokens_per_layer"
VARIABLE = "SERVEKIT_EMBEDDINGS"
"""Set by servekit for the engine: `host`, or `auto` where the table may stay on the GPU; unset: it stays there."""
REPORT = "servekit_report"
"""The method of vLLM's worker that returns `report`."""

logger = logging.getLogger("vllm.servekit_guard")


def register() -> None:
    """Change vLLM's classes in this process: where the table is allocated, and what its worker can report."""
    worker: Any = importlib.import_module("vllm.v1.worker.worker_base").WorkerBase
    setattr(worker, REPORT, lambda self: report(self.get_model()))
    wanted = os.environ.get(VARIABLE)
    if wanted:
        layer: Any = importlib.import_module("vllm.model_executor.layers.vocab_parallel_embedding")
        table: Any = layer.VocabParallelEmbedding
        table.__init__ = offload(table.__init__, required=wanted == "host")


def offload(init: Any, *, required: bool) -> Any:
    """Return the `__init__` of vLLM's embedding, which then puts the table into host memory.

    Not `required`: where that fails, the table is on the GPU as always, and the log has a warning.
    """

    @wraps(init)
    def init_in_host_memory(layer: Any, *sizes: Any, **named: Any) -> None:
        if named.get("prefix", "").rpartition(".")[2] != TABLE:
            init(layer, *sizes, **named)
            return
        with importlib.import_module("torch").device("cpu"):  # takes no memory: nothing is written to it
            init(layer, *sizes, **named)
        try:
            move(layer)
        except (RuntimeError, ValueError) as error:  # what PyTorch and vLLM raise
            problem = f"the per-layer embeddings cannot be in host memory: {error}".strip().splitlines()[0]
            if required:
                raise RuntimeError(f"{problem}; free host memory, or set {VARIABLE}=auto or gpu") from error
            logger.warning("%s; they stay on the GPU and leave less of it for the KV cache", problem)
            clear_error()
            init(layer, *sizes, **named)

    return init_in_host_memory


def move(layer: Any) -> None:
    """Replace the empty table by a view of pinned host memory that the loader fills and the GPU reads.

    Raises ValueError or RuntimeError where that cannot be.
    """
    method = type(layer.quant_method).__name__
    if method != "UnquantizedEmbeddingMethod":  # others replace their tensors after loading
        raise ValueError(f"they are quantized ({method})")
    if not importlib.import_module("vllm.utils.platform_utils").is_uva_available():
        raise ValueError("this host has no pinned memory (WSL)")
    tools = importlib.import_module("vllm.utils.torch_utils")
    # csrc/cuda_view.cu pins exactly this size; PyTorch's own pinned memory rounds 5.25 GiB up to 8.
    layer.weight.data = tools.get_accelerator_view_from_cpu_tensor(layer.weight.data)
    layer.weight._vllm_is_uva_offloaded = True  # noqa: SLF001 - vLLM's own mark, so that it moves the tensor nowhere
    logger.info("per-layer embeddings: %.2f GiB of pinned host memory", layer.weight.nbytes / 2**30)


def clear_error() -> None:
    """Take the error that a failed cudaHostAlloc leaves behind, or PyTorch blames the next kernel for it."""
    with contextlib.suppress(RuntimeError):
        importlib.import_module("torch").ones(1)  # on the device that vLLM is loading the model to


async def read_report(engine: Any) -> dict[str, Any]:
    """Return the worker's `report`, through vLLM's engine client; empty, with the reason in the log, without one."""
    try:
        return dict((await engine.collective_rpc(REPORT))[0])
    except Exception:
        logger.exception("the engine's worker does not report where its weights are")
        return {}


def report(model: Any) -> dict[str, Any]:
    """Return where the table of the loaded model is, read from its tensors, and what its 4-bit layers multiply with.

    `per-layer-embeddings`: gpu, host, cpu, or none without such a table; `activations`: the dtypes.
    """
    tables = [tensor for name, tensor in model.named_parameters() if f".{TABLE}." in f".{name}"]
    places = {place(tensor) for tensor in tables}
    return {
        "per-layer-embeddings": " and ".join(sorted(places)) or "none",
        "pinned_host_bytes": sum(tensor.nbytes for tensor in tables if place(tensor) == "host"),
        "activations": " and ".join(sorted(set(_activations(model)))) or "none",
    }


def place(tensor: Any) -> str:
    """Return which memory a tensor is in: a view of host memory counts as a CUDA tensor, so the driver decides."""
    if tensor.device.type == "cpu":
        return "cpu"
    first_byte = (ctypes.c_ubyte * 1).from_address(tensor.data_ptr())  # nothing reads it
    torch = importlib.import_module("torch")
    return "host" if torch.frombuffer(first_byte, dtype=torch.uint8).is_pinned() else "gpu"


def _activations(model: Any) -> Iterator[str]:
    """Yield the input dtype of each quantized layer (`compressed_tensors/schemes/compressed_tensors_wNa16.py`)."""
    for layer in model.modules():
        config = getattr(getattr(getattr(layer, "scheme", None), "kernel", None), "config", None)
        if config is not None:
            yield str(config.act_type).removeprefix("torch.")
