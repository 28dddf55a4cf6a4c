"""Compress a small model rightly, and with one step wrong, and measure each as `servekit verify` does.

    PYTHON variants.py BASE FOLDER VERIFY_PROGRAM TEXTS.jsonl

It has its own GPTQ, so that the judge is not tested with the recipe's code, and needs only torch and transformers.
Writes FOLDER/NAME for each variant, FOLDER/divergence.json with its KL divergence from the base on held-out texts, and
prints a JSON object of the reports by name.
"""

import contextlib
import importlib.util
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma4ForConditionalGeneration

GROUP = 128
PRUNED = ("gate_proj", "up_proj", "down_proj")
W4A16 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*(vision|audio).*", "re:.*embed.*", "re:.*per_layer_model_projection"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "format": "pack-quantized",
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": GROUP,
                "actorder": "static",
                "dynamic": False,
            },
        }
    },
}
Tensors = dict[str, torch.Tensor]


def main(base: Path, folder: Path, program: Path, texts: Path) -> None:
    """Make and measure every variant."""
    model = Gemma4ForConditionalGeneration.from_pretrained(base, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line)["messages"] for line in texts.read_text().splitlines()]
    real = [tokenizer(tokenizer.apply_chat_template(row, tokenize=False))["input_ids"][:160] for row in rows]
    hessians = gather(model, real[:24])
    with own_keys_and_values(model, load_file(base / "model.safetensors")):
        without_sharing = gather(model, real[:24])
    of_garbage = {name: each for name, each in gather(model, [[300] * 160]).items() if ".layers.0." in name}
    shared = {name for name in hessians if ".layers.4." in name or ".layers.5." in name}
    good = compress(model, hessians)
    mlp = {name for name in hessians if name.endswith(PRUNED)}
    variants = {
        "good": good,
        "pruning": {**good, **compress(model, {name: hessians[name] for name in mlp}, sparsity=0)},
        "rounding": compress(model, dict.fromkeys(hessians)),
        "sharing": {**good, **compress(model, {name: without_sharing[name] for name in shared})},
        "tower": {**good, **compress(model, {tower_matrix(model): None}, sparsity=0)},
        "garbage": {**good, **compress(model, of_garbage)},
    }
    spec = importlib.util.spec_from_file_location("verify_program", program)
    assert spec is not None
    assert spec.loader is not None
    verify = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verify)
    reports, divergences = {}, {}
    expected = next_words(model, real[-3:])
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in hessians}
    for name, made in variants.items():
        write(base, folder / name, made, masks=name != "pruning")
        stored = verify.Checkpoint(folder / name)
        for module in hessians:
            scale = stored[f"{module}.weight_scale"]
            model.get_submodule(module).weight.data = verify.dequantize(
                verify.codes_of(module, stored), scale
            ).bfloat16()
        found = next_words(model, real[-3:])
        divergences[name] = (expected.exp() * (expected - found)).sum(-1).mean().item()
        for module, weight in weights.items():
            model.get_submodule(module).weight.data = weight
        said = io.StringIO()
        sys.argv = ["", str(folder / name), str(base), "--texts", str(texts), "--samples", "3", "--device", "cpu"]
        with contextlib.redirect_stdout(said):
            verify.main()
        reports[name] = [json.loads(line.removeprefix(verify.MARK)) for line in said.getvalue().splitlines()]
    (folder / "divergence.json").write_text(json.dumps(divergences))
    print(json.dumps(reports))


def next_words(model: Any, texts: list[list[int]]) -> torch.Tensor:
    """Return the log probabilities of all next words after each beginning of the texts."""
    with torch.no_grad():
        inputs = [(torch.tensor([ids]), torch.zeros(1, len(ids), dtype=torch.long)) for ids in texts]
        logits = [model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False).logits[0] for ids, kinds in inputs]
    return torch.cat(logits).float().log_softmax(-1)


def gather(model: Any, texts: list[list[int]]) -> Tensors:
    """Return the second moments of the inputs of each matrix of the decoder's layers."""
    hessians: Tensors = {}
    hooks = []
    for name, module in model.model.language_model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):

            def add(_: Any, inputs: Any, __: Any, name: str = f"model.language_model.layers.{name}") -> None:
                x = inputs[0].flatten(0, -2).float()
                hessians[name] = hessians.get(name, torch.zeros(x.shape[1], x.shape[1])) + x.T @ x

            hooks.append(module.register_forward_hook(add))
    with torch.no_grad():
        for ids in texts:
            tokens = torch.tensor([ids])
            model.model(input_ids=tokens, mm_token_type_ids=torch.zeros_like(tokens), use_cache=False)
    for hook in hooks:
        hook.remove()
    return hessians


@contextlib.contextmanager
def own_keys_and_values(model: Any, stored: Tensors) -> Iterator[None]:
    """Let the last layers compute K and V themselves, from projections that they store and do not use."""
    kind = type(model.model.language_model.layers[0].self_attn)
    original: Callable[..., Any] = kind.forward

    def forward(self: Any, hidden_states: torch.Tensor, *rest: Any, **arguments: Any) -> Any:
        if self.is_kv_shared_layer:
            root = f"model.language_model.layers.{self.layer_idx}.self_attn"
            shape = (*hidden_states.shape[:2], -1, self.head_dim)
            pair = [(hidden_states @ stored[f"{root}.{each}_proj.weight"].T).view(shape) for each in ("k", "v")]
            own = [(each / each.float().square().mean().sqrt()).transpose(1, 2).to(each.dtype) for each in pair]
            arguments["shared_kv_states"] = {self.layer_type: own}
        return original(self, hidden_states, *rest, **arguments)

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = original


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped inverse, as GPTQ has it."""
    damped = hessian + 0.01 * hessian.diag().mean().clamp_min(1e-6) * torch.eye(len(hessian))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def compress(model: Any, hessians: Any, *, sparsity: float = 0.1) -> Tensors:
    """Return packed tensors, and under NAME.mask what was pruned; without a Hessian, rounded to the nearest."""
    made: Tensors = {}
    for name, hessian in hessians.items():
        weight = model.get_submodule(name).weight.detach().float()
        factor = torch.eye(weight.shape[1]) if hessian is None else inverse_factor(hessian)
        mask = torch.zeros_like(weight, dtype=torch.bool)
        if sparsity and name.endswith(PRUNED):
            worth = (weight / factor.diag()).abs().flatten()
            mask.view(-1)[worth.argsort()[: int(sparsity * worth.numel())]] = True
            made[f"{name}.mask"] = mask
        weight = weight * ~mask
        scale = (weight.reshape(len(weight), -1, GROUP).abs().amax(-1) / 7.5).bfloat16()
        codes = (weight.reshape(*scale.shape, -1) / scale.unsqueeze(-1)).round().clamp(-8, 7).reshape(weight.shape)
        for column in range(weight.shape[1] if hessian is not None else 0):
            step = scale[:, column // GROUP].float()
            codes[:, column] = (weight[:, column] / step).round().clamp(-8, 7)
            error = (weight[:, column] - codes[:, column] * step) / factor[column, column]
            later = slice(column + 1, None)
            weight[:, later] -= error.outer(factor[column, later]) * ~mask[:, later]
        words = (codes.long() + 8).reshape(len(codes), -1, 8) << torch.arange(0, 32, 4)
        packed = words.sum(-1)
        packed = torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()
        shape = torch.tensor(codes.shape)
        made |= {f"{name}.weight_packed": packed, f"{name}.weight_scale": scale, f"{name}.weight_shape": shape}
    return made


def tower_matrix(model: Any) -> str:
    """Return the name of a matrix of the vision tower whose rows are whole groups."""
    towers = model.model.vision_tower.named_modules()
    linears = [name for name, each in towers if isinstance(each, torch.nn.Linear) and each.in_features % GROUP == 0]
    return f"model.vision_tower.{linears[0]}"


def write(base: Path, out: Path, made: Tensors, *, masks: bool) -> None:
    """Write a checkpoint with these matrices in the place of the base's."""
    shutil.copytree(base, out)
    packed = {name.removesuffix("_packed") for name in made if name.endswith("_packed")}
    unused = {f"model.language_model.layers.{n}.self_attn.{each}_proj.weight" for n in (4, 5) for each in ("k", "v")}
    stored = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if name not in packed | unused}
    new = {name: tensor.contiguous() for name, tensor in made.items() if not name.endswith(".mask")}
    save_file(kept | new, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": W4A16}))
    if masks:
        with zipfile.ZipFile(out / "pruning-mask.zip", "w") as archive:
            for name, mask in made.items():
                if name.endswith(".mask"):
                    bits = mask.reshape(-1, 8).byte() * torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
                    archive.writestr(name.removesuffix(".mask"), bits.sum(-1).byte().numpy().tobytes())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
