"""Whether quantization_config covers every linear layer that vLLM 0.20.2 builds, and kernels run them."""

from collections.abc import Iterator
from typing import Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.contents.layers import Linear, expected_modules
from servekit.preflight.checkpoint.naming import FUSED, LM_HEAD
from servekit.preflight.checkpoint.quantization.kernels import Device, kernel_objections
from servekit.preflight.checkpoint.quantization.saying import Say, saying
from servekit.preflight.checkpoint.quantization.scheme import WeightScheme
from servekit.preflight.checkpoint.quantization.section import REQUANTIZE
from servekit.preflight.findings import Finding, error, warning

_FULL_PRECISION: Final = {
    "the vision tower": "model.vision_tower.encoder.layers.0.mlp.up_proj.linear",
    "the audio tower": "model.audio_tower.layers.0.self_attn.q_proj.linear",
    "the image projector": "model.embed_vision.embedding_projection",
    "the audio projector": "model.embed_audio.embedding_projection",
}


def check_layers(scheme: WeightScheme, config: ModelConfig, device: Device) -> Iterator[Finding]:
    """Report layers that vLLM cannot match with a group or has no kernel for, and towers that should be ignored.

    vLLM 0.20.2 never quantizes towers and projectors (models/gemma4_mm.py). So a gap in the ignore list is a warning;
    the headers show whether quantized tensors are stored there.
    """
    say = saying(config.quantization_key)
    gaps = [
        part
        for part, module in _FULL_PRECISION.items()
        if scheme.covers(module) and (config.audio is not None or "audio" not in part)
    ]
    if gaps and not config.text_only:
        message = f"does not cover {', '.join(gaps)}, which vLLM {ENGINE_VERSION} never quantizes"
        yield say(warning, "ignore-list", "ignore", message, "add them, as the recipe does")
    if config.text is None:
        return
    if config.text.tie_word_embeddings and scheme.args_of(LM_HEAD):
        message = "quantize lm_head, which is tied to the embedding: vLLM would use packed weights that no tensor fills"
        yield say(error, "quantization-targets", "config_groups", message, "name lm_head in no target")
    told: set[str] = set()
    for module, outputs, inputs in _fused(expected_modules(config.text)[0], config):
        for finding in _check_layer(scheme, module, outputs, inputs, device, say):
            if (mark := f"{finding.name} {finding.message.partition(': ')[2]}") not in told:
                told.add(mark)
                yield finding


def _fused(linears: list[Linear], config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """Return a module of each layer that vLLM builds, with the layer's outputs and inputs."""
    first_parts = {parts[0]: parts for parts in FUSED.values()}
    outputs = {linear.module: linear.outputs for linear in linears}
    later = {part for parts in FUSED.values() for part in parts[1:]}
    for linear in linears:
        parent, _, leaf = linear.module.rpartition(".")
        if leaf in later:
            continue
        others = [f"{parent}.{part}" for part in first_parts.get(leaf, (leaf,))[1:]]
        # Where keys are values too, no v_proj is stored, but vLLM has room for both.
        sizes = [outputs.get(other, outputs.get(others[0], 0)) for other in others]
        yield linear.module, linear.outputs + sum(sizes), linear.inputs
    if config.text and not config.text.tie_word_embeddings:
        yield LM_HEAD, config.text.vocab_size, config.text.hidden_size


def _check_layer(
    scheme: WeightScheme, module: str, outputs: int, inputs: int, device: Device, say: Say
) -> Iterator[Finding]:
    layer = scheme.layer(module)
    if layer.split:
        message = f"covers only a part of {layer.name}: vLLM fuses its projections into one layer"
        yield say(error, "ignore-split", "ignore", message, "ignore all of them or none")
    elif layer.target is None and not layer.ignored and module != LM_HEAD:
        message = f"neither quantize nor ignore {layer.name}: vLLM {ENGINE_VERSION} ends at such a layer"
        yield say(error, "quantization-targets", "config_groups", message, "name it in targets, or in ignore")
    elif args := scheme.args_of(module):
        for objection in kernel_objections(args, outputs, inputs, device):
            message = f"{layer.name}: vLLM {ENGINE_VERSION} has no kernel on {device.name} for {objection}"
            yield say(error, "quantization-kernel", "config_groups", message, REQUANTIZE)
