"""The answers of one side, in one process of the engine's Python: greedy tokens, and every logit of a small batch.

usage: answers.py MODEL OUT.json '{"prompts": 1000, "tokens": 64, "engine": {...}}'

All requests of a batch are there before its first step, and EngineCore runs in this process, so that both sides
schedule the same batches. SERVEKIT_EMBEDDINGS decides the side. Without a GPU, `"rehearse": true` replaces the view of
pinned memory by the tensor itself.
"""

import hashlib
import importlib
import json
import os
import random
import struct
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def main() -> None:
    """Write what one side answers."""
    model, out, wanted = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - a rehearsal changes vLLM first

    llm = LLM(model, **wanted["engine"], logprobs_mode="raw_logits", max_logprobs=-1, seed=0)

    def ask(seed: int, count: int, length: int, **sampling: Any) -> Any:
        draw = random.Random(seed)
        prompts = [{"prompt_token_ids": [draw.randrange(14, 270) for _ in range(length)]} for _ in range(count)]
        return llm.generate(prompts, SamplingParams(temperature=0, ignore_eos=True, **sampling), use_tqdm=False)

    greedy = ask(1, wanted["prompts"], wanted["length"], max_tokens=wanted["tokens"])
    batch = ask(2, 4, 64, max_tokens=4, logprobs=-1)
    answer = {
        "reports": llm.collective_rpc("servekit_report"),
        "blocks": llm.llm_engine.vllm_config.cache_config.num_gpu_blocks,
        "tokens": [" ".join(map(str, each.outputs[0].token_ids)) for each in greedy],
        "logits": [hashed(step) for each in batch for step in each.outputs[0].logprobs],
    }
    out.write_text(json.dumps(answer))


def hashed(step: Any) -> str:
    """Return a hash over the bits of all logits of a step, in the order of the words."""
    logits = (step[word].logprob for word in sorted(step))
    return hashlib.sha256(b"".join(struct.pack("<f", logit) for logit in logits)).hexdigest()


def rehearse() -> None:
    """Let the table be an ordinary tensor: a CPU has no view of pinned memory."""
    embeddings: Any = importlib.import_module("servekit_guard.core.embeddings")
    platform: Any = importlib.import_module("vllm.utils.platform_utils")
    tools: Any = importlib.import_module("vllm.utils.torch_utils")
    move, available = embeddings.move, platform.is_uva_available

    def moved(layer: Any) -> None:
        platform.is_uva_available = lambda: True  # only here: vLLM's buffers ask it too
        try:
            move(layer)
        finally:
            platform.is_uva_available = available

    tools.get_accelerator_view_from_cpu_tensor = lambda tensor: tensor
    embeddings.move = moved


if '"rehearse": true' in sys.argv[-1]:  # in vLLM's worker too, which imports this file before its model is loaded
    rehearse()
if __name__ == "__main__":
    main()
