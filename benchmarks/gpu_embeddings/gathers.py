"""Whether the GPU gathers the same bits from pinned host memory as from its own: every row of a table of E4B's size.

usage: gathers.py WORDS COLUMNS, with the engine's Python and the guard's folder on its path. Every pattern of 16 bits
that a BF16 number can be occurs in the table. Exits with 1 at the first row that differs.
"""

import importlib
import os
import sys
from typing import Any

import torch
from servekit_guard.core import embeddings

ROWS = 8_192


def main() -> None:
    """Gather all rows from both tables."""
    words, columns = int(sys.argv[1]), int(sys.argv[2])
    layer: Any = importlib.import_module("vllm.model_executor.layers.vocab_parallel_embedding")
    make = layer.VocabParallelEmbedding.__init__
    config: Any = importlib.import_module("vllm.config")
    parallel: Any = importlib.import_module("vllm.distributed.parallel_state")
    with config.set_current_vllm_config(config.VllmConfig()):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
        parallel.init_distributed_environment(1, 0, local_rank=0)
        parallel.initialize_model_parallel()
        layer.VocabParallelEmbedding.__init__ = embeddings.offload(make, required=True)
        with torch.device("cuda"):
            table = layer.VocabParallelEmbedding(
                words, columns, params_dtype=torch.bfloat16, prefix=f"model.{embeddings.TABLE}"
            )
        patterns = torch.arange(65_536, device="cuda", dtype=torch.int32).to(torch.int16)
        for begin in range(0, words, ROWS):
            rows = slice(begin, min(begin + ROWS, words))
            size = (rows.stop - rows.start, columns)
            drawn = patterns[torch.randint(0, 65_536, size, device="cuda")]
            table.weight.data[rows] = drawn.view(torch.bfloat16)
            own = drawn.view(torch.bfloat16)
            ids = torch.randperm(size[0], device="cuda")
            gathered = table(ids + begin)
            if not torch.equal(gathered.view(torch.int16), own[ids].view(torch.int16)):
                sys.exit(f"rows from {begin} differ")
    place = "host" if getattr(table.weight, "_vllm_is_uva_offloaded", False) else "gpu"
    print(f"{words} rows of {columns} gathered from {place} memory, all bits equal")


if __name__ == "__main__":
    main()
