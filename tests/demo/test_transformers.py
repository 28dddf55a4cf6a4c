"""The checkpoint as the engine's own libraries read it."""

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

READ = """
import json, sys
import torch
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, Gemma4ForConditionalGeneration

quantized, full = sys.argv[1:]
config = AutoConfig.from_pretrained(full)
with torch.device("meta"):
    expected = {n: list(t.shape) for n, t in Gemma4ForConditionalGeneration(config).state_dict().items()}
with safe_open(full + "/model.safetensors", "pt") as file:
    found = {n: file.get_slice(n).get_shape() for n in file.keys()}
    finite = all(bool(file.get_tensor(n).isfinite().all()) for n in file.keys())
root = "model.language_model.layers.0.mlp.down_proj."
with safe_open(quantized + "/model.safetensors", "pt") as file:
    shape = file.get_tensor(root + "weight_shape")
    weights = unpack_from_int32(file.get_tensor(root + "weight_packed"), 4, torch.Size(shape))
    scales = file.get_tensor(root + "weight_scale").float().repeat_interleave(128, dim=1)
tokenizer = AutoTokenizer.from_pretrained(quantized)
texts = ["Hello, w\\u00f6rld 12!", " the house\\n\\tx  y", "\\u65e5\\u672c"]
ids = [i for i in range(0, len(tokenizer), 7) if tokenizer.convert_ids_to_tokens(i)[1:].isalpha()]
print(json.dumps({
    "missing": sorted(set(expected) - set(found)),
    "unexpected": sorted({n.split(".")[-2] for n in set(found) - set(expected)}),
    "different": [n for n in expected if n in found and expected[n] != found[n]],
    "finite": finite,
    "std": (weights * scales).std().item() * shape[1].item() ** 0.5,
    "processor": type(AutoProcessor.from_pretrained(quantized)).__name__,
    "vocabulary": len(tokenizer),
    "round_trip": all(tokenizer.decode(tokenizer.encode(t, add_special_tokens=False)) == t for t in texts),
    "words_round_trip": tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids,
}))
"""


def test_transformers_and_compressed_tensors_read_the_checkpoint(root: Path, tiny: Path, tiny_bf16: Path) -> None:
    """transformers finds every tensor that it expects, and the tokenizer round-trips text."""
    python = root / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs .venv-engine")
    result = subprocess.run(
        [python, "-c", READ, tiny, tiny_bf16],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found.pop("std") == pytest.approx(1.0, abs=0.05)
    assert found == {
        "missing": ["lm_head.weight"],  # tied to the embeddings
        "unexpected": ["k_norm", "k_proj", "v_proj"],  # of the layers that share them; vLLM requires them
        "different": [],
        "finite": True,
        "processor": "Gemma4Processor",
        "vocabulary": 1024,
        "round_trip": True,
        "words_round_trip": True,
    }
