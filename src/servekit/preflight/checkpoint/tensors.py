"""Compares the stored tensors with the configured model: missing, misshapen, without scales, quantized by mistake."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.layers import Linear, Plain, expected_modules
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

_AGAIN: Final = "the files are from another or an incomplete checkpoint: download or quantize it again"
_PACKED: Final = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_KV_SCALES: Final = (".k_scale", ".v_scale", ".q_scale", ".output_scale", ".prob_scale")
_LAYER: Final = re.compile(r"layers\.(\d+)\.")
_EXPERTS: Final = re.compile(r"\.(moe|router|experts)\.|feedforward_layernorm_[12]")
_faulty: Final = partial(error, remedy=_AGAIN)


def check_tensors(
    tensors: Sequence[Tensor], config: ModelConfig, scheme: WeightScheme | None, limits: Mapping[str, int]
) -> Iterator[Finding]:
    """Compare the headers with config.json; `limits` are the items per prompt of image, audio and video.

    There is one finding for each kind of fault: it names the first tensor and gives the number of the others.
    """
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        part, name = part_of(tensor.name)
        parts[part][name] = tensor
    if config.text:
        linears, plains = expected_modules(config.text)
        yield from _gather(_text_faults(parts[TEXT], linears, plains, scheme))
        if not config.text.tie_word_embeddings and not {"weight", "weight_packed"} & parts[LM_HEAD].keys():
            yield _faulty("tensor-missing", "lm_head.weight is not stored, and tie_word_embeddings is false")
        known = {plain.name for plain in plains}
        known |= {f"{linear.module}.{suffix}" for linear in linears for suffix in ("weight", *_PACKED)}
        yield from _unexpected([name for name in parts[TEXT] if name not in known], config.text)
    yield from _check_towers(parts, config, limits)


def _gather(faults: Iterable[Finding]) -> Iterator[Finding]:
    kinds: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
    for fault in faults:
        kinds[fault.name, fault.remedy].append(fault)
    for first, *others in kinds.values():
        yield replace(first, message=f"{first.message} (and {len(others)} more)") if others else first


def _text_faults(
    stored: Mapping[str, Tensor], linears: list[Linear], plains: list[Plain], scheme: WeightScheme | None
) -> Iterator[Finding]:
    for linear in linears:
        yield from _linear_faults(stored, linear, scheme)
    for plain in plains:
        tensor = stored.get(plain.name)
        if tensor is None:
            yield from _absent(plain.name, scheme, unused=plain.unused)
        elif tensor.shape != plain.shape and not (plain.shape == (1,) and tensor.shape == ()):
            yield _misshapen(tensor, plain.shape)


def _linear_faults(stored: Mapping[str, Tensor], linear: Linear, scheme: WeightScheme | None) -> Iterator[Finding]:
    shape = (linear.outputs, linear.inputs)
    plain, packed = (stored.get(f"{linear.module}.{suffix}") for suffix in ("weight", "weight_packed"))
    quantizes = scheme is not None and scheme.quantizes(f"model.language_model.{linear.module}")
    if packed is not None and scheme is not None and quantizes:
        yield from _packed_faults(stored, linear, scheme, packed)
    elif packed is not None:
        why = "quantization_config does not declare it" if scheme is None else "the ignore list excludes it"
        yield _faulty("tensor-quantized", f"{linear.module} is stored quantized, but {why}")
    elif plain is None:
        yield from _absent(linear.module, scheme, unused=linear.unused)
    elif quantizes:
        # vLLM 0.20.2 has no parameter named weight in a quantized layer: KeyError while loading
        yield error(
            "tensor-unquantized",
            f"{linear.module} is stored as a plain weight, but quantization_config declares it quantized",
            remedy="quantize the layer, or name it in quantization_config.ignore",
        )
    elif plain.shape != shape:
        yield _misshapen(plain, shape)


def _packed_faults(
    stored: Mapping[str, Tensor], linear: Linear, scheme: WeightScheme, packed: Tensor
) -> Iterator[Finding]:
    shape = (linear.outputs, -(-linear.inputs * scheme.bits // 32))
    scales = (linear.outputs, scheme.groups(linear.inputs))
    scale = stored.get(f"{linear.module}.weight_scale")
    if packed.shape != shape or packed.dtype != "I32":
        yield _misshapen(packed, shape, "I32")
    if scale is None:
        yield _faulty("scale-missing", f"{linear.module} is stored quantized without its weight_scale")
    elif scale.shape != scales:
        yield _misshapen(scale, scales)
    if not scheme.symmetric and f"{linear.module}.weight_zero_point" not in stored:
        yield _faulty("scale-missing", f"{linear.module} is asymmetric without its weight_zero_point")


def _absent(name: str, scheme: WeightScheme | None, *, unused: bool) -> Iterator[Finding]:
    """Report a tensor that is not stored; a quantized checkpoint may lack an unused one."""
    if not unused:
        # vLLM 0.20.2 checks that every weight was loaded only when the model is not quantized (default_loader.py)
        ending = "vLLM rejects the checkpoint" if scheme is None else "vLLM would serve with uninitialized memory"
        yield _faulty("tensor-missing", f"{name} is not stored: {ending}")
    elif scheme is None:
        yield error(
            "kv-shared-weights",
            f"{name} is not stored: transformers 5.8 drops the unused projections of KV-shared layers when it saves, "
            f"and vLLM {ENGINE_VERSION} rejects an unquantized checkpoint without them",
            remedy="add them, for instance as copies of the layer that owns the cache",
        )


def _misshapen(tensor: Tensor, shape: tuple[int, ...], dtype: str = "") -> Finding:
    wanted = f"{dtype} {list(shape)}".strip()
    return _faulty(
        "tensor-shape", f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, config.json requires {wanted}"
    )


def _unexpected(names: list[str], text: TextConfig) -> Iterator[Finding]:
    experts = text.enable_moe_block
    strange = [name for name in names if not name.endswith(_KV_SCALES) and not (experts and _EXPERTS.search(name))]
    beyond = [name for name in strange if (layer := _LAYER.match(name)) and int(layer[1]) >= text.num_hidden_layers]
    if beyond:
        yield _faulty(
            "tensor-unexpected",
            f"{len(beyond)} tensors are of layers beyond config.json's {text.num_hidden_layers}, such as {beyond[0]}",
        )
    elif strange:
        yield warning(
            "tensor-unexpected",
            f"{len(strange)} tensors belong to no part of the model, such as {strange[0]}",
            remedy="vLLM may reject them",
        )


def _check_towers(
    parts: Mapping[str, Mapping[str, Tensor]], config: ModelConfig, limits: Mapping[str, int]
) -> Iterator[Finding]:
    towers = (
        (VISION, VISION_PROJECTOR, config.vision, max(limits["image"], limits["video"])),
        (AUDIO, AUDIO_PROJECTOR, config.audio, limits["audio"]),
    )
    for tower, projector, section, items in towers:
        stored = [*parts.get(tower, ()), *parts.get(projector, ())]
        quantized = [name for name in stored if name.endswith("weight_packed")]
        if quantized:
            yield error(
                "tensor-quantized",
                f"{tower}: vLLM {ENGINE_VERSION} cannot load its {len(quantized)} quantized tensors, such as "
                f"{quantized[0]}",
                remedy="leave towers and projectors at full precision",
            )
        if section is not None and items and (absent := _absent_of_tower(parts, tower, projector, section)):
            yield _faulty("tower-missing", f"{tower}: no tensors of {absent}")


def _absent_of_tower(
    parts: Mapping[str, Mapping[str, Tensor]], tower: str, projector: str, section: Mapping[str, object]
) -> str:
    if not parts.get(projector):
        return projector
    found = {int(layer[1]) for name in parts.get(tower, {}) if (layer := _LAYER.search(name))}
    layers = section.get("num_hidden_layers")
    # One layer more than those found is enough to detect a gap; a damaged file may name any number of layers.
    expected = range(min(layers, len(found) + 1) if isinstance(layers, int) else 0)
    missing = sorted(set(expected) - found)
    return f"layer {missing[0]}" if missing else ("" if parts.get(tower) else tower)
