"""Stored tensors against the configured model: missing, misshapen, without scales, quantized where they must not."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.layers import Linear, expected_modules
from servekit.preflight.checkpoint.naming import (
    AUDIO,
    AUDIO_PROJECTOR,
    LM_HEAD,
    TEXT,
    VISION,
    VISION_PROJECTOR,
    part_of,
)
from servekit.preflight.checkpoint.quantization import WeightScheme
from servekit.preflight.checkpoint.shard_header import Tensor
from servekit.preflight.checkpoint.text_config import TextConfig
from servekit.preflight.findings import Finding, error, warning

_AGAIN: Final = "the files are of another or an incomplete checkpoint: download or quantize it again"
_PACKED: Final = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_KV_SCALES: Final = (".k_scale", ".v_scale", ".q_scale", ".output_scale", ".prob_scale")
_LAYER: Final = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class _Fault:
    finding: str
    message: str
    remedy: str = _AGAIN


def check_tensors(
    tensors: Sequence[Tensor], config: ModelConfig, scheme: WeightScheme | None, limits: Mapping[str, int]
) -> Iterator[Finding]:
    """Compare the headers with config.json; `limits` are the items per prompt of image, audio and video.

    Of each kind of fault one finding tells how many there are and names the first.
    """
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        part, name = part_of(tensor.name)
        parts[part][name] = tensor
    if config.text:
        faults = [
            *_text_faults(parts[TEXT], config.text, scheme),
            *_head_faults(parts[LM_HEAD], config.text),
        ]
        yield from _gather(faults)
        yield from _unexpected(parts[TEXT], config.text)
    yield from _check_towers(parts, config, limits)


def _gather(faults: Sequence[_Fault]) -> Iterator[Finding]:
    kinds: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for fault in faults:
        kinds[fault.finding, fault.remedy].append(fault.message)
    for (finding, remedy), messages in kinds.items():
        more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
        yield error(finding, messages[0] + more, remedy=remedy)


def _text_faults(stored: Mapping[str, Tensor], text: TextConfig, scheme: WeightScheme | None) -> Iterator[_Fault]:
    linears, plains = expected_modules(text)
    for linear in linears:
        yield from _linear_faults(stored, linear, scheme)
    for plain in plains:
        tensor = stored.get(plain.name)
        if tensor is None and plain.unused:
            yield from _dropped(plain.name, scheme)
        elif tensor is None:
            yield _missing(plain.name, scheme)
        elif tensor.shape != plain.shape and not (plain.shape == (1,) and tensor.shape == ()):
            yield _misshapen(tensor, plain.shape)


def _linear_faults(stored: Mapping[str, Tensor], linear: Linear, scheme: WeightScheme | None) -> Iterator[_Fault]:
    name = f"model.language_model.{linear.module}"
    plain, packed = (stored.get(f"{linear.module}.{suffix}") for suffix in ("weight", "weight_packed"))
    if plain is None and packed is None:
        yield from _dropped(linear.module, scheme) if linear.unused else (_missing(linear.module, scheme),)
    elif packed is not None:
        if scheme is None or not scheme.quantizes(name):
            why = "quantization_config does not say so" if scheme is None else "the ignore list says it is not"
            yield _Fault("tensor-quantized", f"{linear.module} is stored quantized, but {why}")
        else:
            yield from _packed_faults(stored, linear, scheme, packed)
    elif plain is not None:
        if scheme is not None and scheme.quantizes(name):
            # vLLM 0.20.2 has no parameter named weight in a quantized layer: KeyError while loading
            yield _Fault(
                "tensor-unquantized",
                f"{linear.module} is stored as a plain weight, quantization_config says it is quantized",
                "quantize the layer, or name it in quantization_config.ignore",
            )
        elif plain.shape != (linear.outputs, linear.inputs):
            yield _misshapen(plain, (linear.outputs, linear.inputs))


def _packed_faults(
    stored: Mapping[str, Tensor], linear: Linear, scheme: WeightScheme, packed: Tensor
) -> Iterator[_Fault]:
    shape = (linear.outputs, -(-linear.inputs // scheme.pack_factor))
    if packed.shape != shape or packed.dtype != "I32":
        yield _misshapen(packed, shape, "I32")
    scale = stored.get(f"{linear.module}.weight_scale")
    if scale is None:
        yield _Fault("scale-missing", f"{linear.module} is stored quantized without its weight_scale")
    elif scale.shape != (linear.outputs, scheme.groups(linear.inputs)):
        yield _misshapen(scale, (linear.outputs, scheme.groups(linear.inputs)))
    if not scheme.symmetric and f"{linear.module}.weight_zero_point" not in stored:
        yield _Fault("scale-missing", f"{linear.module} is asymmetric without its weight_zero_point")


def _missing(name: str, scheme: WeightScheme | None) -> _Fault:
    # vLLM 0.20.2 checks that every weight was loaded only when the model is not quantized (default_loader.py)
    ending = "vLLM refuses the checkpoint" if scheme is None else "vLLM would serve whatever the memory held"
    return _Fault("tensor-missing", f"{name} is not stored: {ending}")


def _dropped(name: str, scheme: WeightScheme | None) -> Iterator[_Fault]:
    if scheme is None:
        yield _Fault(
            "kv-shared-weights",
            f"{name} is not stored: transformers 5.8 drops the unused projections of KV-shared layers when it saves, "
            "vLLM 0.20.2 refuses an unquantized checkpoint without them",
            "put them back, for instance copies of the layer whose cache is shared",
        )


def _misshapen(tensor: Tensor, shape: tuple[int, ...], dtype: str = "") -> _Fault:
    wanted = f"{dtype} {list(shape)}".strip()
    return _Fault(
        "tensor-shape",
        f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, config.json makes it {wanted}",
    )


def _head_faults(stored: Mapping[str, Tensor], text: TextConfig) -> Iterator[_Fault]:
    if text.tie_word_embeddings:
        return
    if "weight" not in stored and "weight_packed" not in stored:
        yield _Fault("tensor-missing", "lm_head.weight is not stored, and tie_word_embeddings says it is no copy")


def _unexpected(stored: Mapping[str, Tensor], text: TextConfig) -> Iterator[Finding]:
    linears, plains = expected_modules(text)
    known = {plain.name for plain in plains}
    for linear in linears:
        known.add(f"{linear.module}.weight")
        known.update(f"{linear.module}.{suffix}" for suffix in _PACKED)
    strange = [name for name in stored if name not in known and not name.endswith(_KV_SCALES)]
    if text.enable_moe_block:
        strange = [
            name for name in strange if not re.search(r"\.(moe|router|experts)\.|feedforward_layernorm_[12]", name)
        ]
    beyond = [name for name in strange if (layer := _LAYER.match(name)) and int(layer[1]) >= text.num_hidden_layers]
    if beyond:
        yield error(
            "tensor-unexpected",
            f"{len(beyond)} tensors are of layers beyond config.json's {text.num_hidden_layers}, such as {beyond[0]}",
            remedy=_AGAIN,
        )
    elif strange:
        yield warning(
            "tensor-unexpected",
            f"{len(strange)} tensors belong to no part of the model, such as {strange[0]}",
            remedy="vLLM may refuse them",
        )


def _check_towers(
    parts: Mapping[str, Mapping[str, Tensor]], config: ModelConfig, limits: Mapping[str, int]
) -> Iterator[Finding]:
    towers = (
        (VISION, VISION_PROJECTOR, config.vision, max(limits["image"], limits["video"])),
        (AUDIO, AUDIO_PROJECTOR, config.audio, limits["audio"]),
    )
    for tower, projector, section, items in towers:
        quantized = [
            name for part in (tower, projector) for name in parts.get(part, {}) if name.endswith("weight_packed")
        ]
        if quantized:
            yield error(
                "tensor-quantized",
                f"{tower}: {len(quantized)} quantized tensors, such as {quantized[0]}: vLLM 0.20.2 cannot load them",
                remedy="leave towers and projectors at full precision",
            )
        if section is not None and items and (absent := _absent_of_tower(parts, tower, projector, section)):
            yield error("tower-missing", f"{tower}: no tensors of {absent}", remedy=_AGAIN)


def _absent_of_tower(
    parts: Mapping[str, Mapping[str, Tensor]], tower: str, projector: str, section: Mapping[str, object]
) -> str:
    if not parts.get(projector):
        return projector
    found = {int(layer[1]) for name in parts.get(tower, {}) if (layer := re.search(r"layers\.(\d+)\.", name))}
    layers = section.get("num_hidden_layers")
    # one layer beyond those found is enough to see that one is missing, whatever number a damaged file names
    expected = range(min(layers, len(found) + 1) if isinstance(layers, int) else 0)
    missing = sorted(set(expected) - found)
    return f"layer {missing[0]}" if missing else ("" if parts.get(tower) else tower)
