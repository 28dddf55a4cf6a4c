"""The default model before its files are here: its shapes are those of google/gemma-4-E4B-it, in W4A16."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from servekit.demo.json_files import model_config
from servekit.demo.sizes import E4B
from servekit.demo.tensor_list import tensors
from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts
from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.quantization.section import check_quantization
from servekit.preflight.checkpoint.shard_header import Tensor
from servekit.preflight.checkpoint.text_config import ARCHITECTURES, parse_text_config


def default_checkpoint(*, quantized: bool = True) -> CheckpointFacts:
    """Return the facts of gemma-4-E4B, from the generator of the demo checkpoint; nothing is written or read."""
    tokens: dict[str, int] = defaultdict(int)  # the ids of special tokens take no memory
    raw: dict[str, Any] = json.loads(json.dumps(model_config(E4B, tokens, quantized=quantized)))
    config = ModelConfig(
        architecture=ARCHITECTURES[0],
        text=parse_text_config(raw["text_config"]),
        dtype=raw["dtype"],
        quantization=raw.get("quantization_config"),
    )
    scheme, _ = check_quantization(config, None, "cuda")
    stored = (
        Tensor(each.name, each.dtype, tuple(each.shape), 0, each.nbytes, Path())
        for each in tensors(E4B, quantized=quantized)
    )
    return CheckpointFacts(Path(), "", config, scheme, tuple(stored))
