"""Compares the stored tensors with the configured model: missing, misshapen, without scales, quantized by mistake."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import CONFIG, ModelConfig
from servekit.preflight.checkpoint.contents.layers import Linear, Plain, expected_modules
from servekit.preflight.checkpoint.contents.strangers import check_strangers
from servekit.preflight.checkpoint.contents.towers import tower_tensors
from servekit.preflight.checkpoint.naming import (
    AUDIO,
    AUDIO_PROJECTOR,
    LM_HEAD,
    TEXT,
    UNKNOWN,
    VISION,
    VISION_PROJECTOR,
    part_of,
)
from servekit.preflight.checkpoint.quantization.scheme import WeightScheme
from servekit.preflight.checkpoint.quantization.weight_args import WeightArgs
from servekit.preflight.checkpoint.shard_header import FLOAT_DTYPES, Tensor
from servekit.preflight.findings import Finding, error

_AGAIN: Final = "the files are from another or an incomplete checkpoint: download or quantize it again"
_faulty: Final = partial(error, remedy=_AGAIN)
_WORD_BITS: Final = 32
_FLOAT: Final = "float"
Parts = Mapping[str, Mapping[str, Tensor]]


def check_tensors(
    tensors: Sequence[Tensor], config: ModelConfig, scheme: WeightScheme | None, limits: Mapping[str, int]
) -> Iterator[Finding]:
    """Compare the headers with config.json; `limits` are the items per prompt of image, audio and video.

    There is one finding for each kind of fault: it names the first tensor and gives the number of the others.
    """
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        part, name = part_of(tensor.name)
        part = UNKNOWN if part == TEXT and name.startswith(f"{LM_HEAD}.") else part
        parts[part][name] = tensor
    parts[TEXT] |= {f"{LM_HEAD}.{name}": tensor for name, tensor in parts.pop(LM_HEAD, {}).items()}
    known: dict[str, set[str]] = {}
    if config.text:
        linears, plains = expected_modules(config.text)
        known[TEXT] = {name for plain in plains for name in (plain.name, *_packed_names(plain.name))}
        for linear in linears:
            known[TEXT] |= _names(linear, scheme, parts[TEXT])
        yield from _gather(_text_faults(parts[TEXT], linears, plains, scheme))
        yield from _gather(_tower_faults(parts, config, limits, known))
        yield from check_strangers(parts, known, config)


def _gather(faults: Iterable[Finding]) -> Iterator[Finding]:
    kinds: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
    for fault in faults:
        kinds[fault.name, fault.remedy].append(fault)
    for first, *others in kinds.values():
        yield replace(first, message=f"{first.message} (and {len(others)} more)") if others else first


def _packed_tensors(linear: Linear, args: WeightArgs) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of each tensor of a packed layer, as vLLM allocates them (compressed_tensors_wNa16.py)."""
    groups, per_word = args.groups(linear.inputs), _WORD_BITS // args.num_bits
    return {
        "weight_packed": ((linear.outputs, -(-linear.inputs // per_word)), "I32"),
        "weight_scale": ((linear.outputs, groups), _FLOAT),
        "weight_shape": ((2,), ""),
        **({} if args.symmetric else {"weight_zero_point": ((linear.outputs // per_word, groups), "I32")}),
        **({"weight_g_idx": ((linear.inputs,), "I32")} if args.has_g_idx else {}),
    }


def _packed_names(weight: str) -> tuple[str, ...]:
    return tuple(f"{weight}_{suffix}" for suffix in ("packed", "scale", "shape", "zero_point"))


def _names(linear: Linear, scheme: WeightScheme | None, stored: Mapping[str, Tensor]) -> set[str]:
    """Return the tensors of a linear layer that have their own findings, or none."""
    args = scheme.args_of(linear.module) if scheme else None
    plain = f"{linear.module}.weight"
    if args:
        return {plain, *(f"{linear.module}.{suffix}" for suffix in _packed_tensors(linear, args))}
    return {plain, *(_packed_names(plain) if f"{plain}_packed" in stored else ())}


def _text_faults(
    stored: Mapping[str, Tensor], linears: list[Linear], plains: list[Plain], scheme: WeightScheme | None
) -> Iterator[Finding]:
    for linear in linears:
        yield from _linear_faults(stored, linear, scheme)
    for plain in plains:
        if tensor := stored.get(plain.name):
            yield from _misshapen(tensor, plain.shape, _FLOAT)
        elif f"{plain.name}_packed" in stored:
            yield _faulty("tensor-quantized", f"{plain.name} is stored quantized: vLLM {ENGINE_VERSION} needs it plain")
        else:
            yield from _absent(plain.name, scheme, unused=plain.unused)


def _linear_faults(stored: Mapping[str, Tensor], linear: Linear, scheme: WeightScheme | None) -> Iterator[Finding]:
    plain, packed = (stored.get(f"{linear.module}.{suffix}") for suffix in ("weight", "weight_packed"))
    args = scheme.args_of(linear.module) if scheme else None
    if packed and args:
        yield from _packed_faults(stored, linear, args)
    elif packed:
        why = "quantization_config does not declare it" if scheme is None else "no target covers it, or ignore does"
        yield _faulty("tensor-quantized", f"{linear.module} is stored quantized, but {why}")
    elif plain is None:
        yield from _absent(linear.module, scheme, unused=linear.unused)
    elif args:
        # vLLM 0.20.2 has no parameter named weight in a quantized layer: KeyError while loading
        yield error(
            "tensor-unquantized",
            f"{linear.module} is stored as a plain weight, but quantization_config declares it quantized",
            remedy="quantize the layer, or name it in quantization_config.ignore",
        )
    else:
        yield from _misshapen(plain, (linear.outputs, linear.inputs), _FLOAT)


def _packed_faults(stored: Mapping[str, Tensor], linear: Linear, args: WeightArgs) -> Iterator[Finding]:
    for suffix, (shape, dtype) in _packed_tensors(linear, args).items():
        if tensor := stored.get(f"{linear.module}.{suffix}"):
            yield from _misshapen(tensor, shape, dtype)
        elif suffix != "weight_shape":  # vLLM reads it and does not use it
            yield _faulty("scale-missing", f"{linear.module} is stored quantized without its {suffix}")


def _absent(name: str, scheme: WeightScheme | None, *, unused: bool) -> Iterator[Finding]:
    """Report a tensor that is not stored; a quantized checkpoint may lack an unused one."""
    if not unused:
        # vLLM 0.20.2 checks that every weight was loaded only when the model is not quantized (default_loader.py)
        ending = "vLLM rejects the checkpoint" if scheme is None else "vLLM would serve without it, and answer wrongly"
        yield _faulty("tensor-missing", f"{name} is not stored: {ending}")
    elif scheme is None:
        yield error(
            "kv-shared-weights",
            f"{name} is not stored: transformers 5.8 drops the unused projections of KV-shared layers when it saves, "
            f"and vLLM {ENGINE_VERSION} rejects an unquantized checkpoint without them",
            remedy="add them, for instance as copies of the layer that owns the cache",
        )


def _misshapen(tensor: Tensor, shape: tuple[int, ...], dtype: str) -> Iterator[Finding]:
    """Report another shape or dtype; vLLM casts between floating-point types."""
    same = tensor.shape == shape or (tensor.elements == 1 and shape in {(1,), ()})
    if not same or (tensor.dtype not in FLOAT_DTYPES if dtype == _FLOAT else dtype not in {"", tensor.dtype}):
        wanted = f"{dtype} {list(shape)}".strip()
        yield _faulty(
            "tensor-shape", f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, config.json requires {wanted}"
        )


def _tower_faults(
    parts: Parts, config: ModelConfig, limits: Mapping[str, int], known: dict[str, set[str]]
) -> Iterator[Finding]:
    """Report the faults of the towers that vLLM loads, and add the names of their tensors to `known`."""
    towers = (
        (VISION, VISION_PROJECTOR, "vision-config", config.vision, max(limits["image"], limits["video"])),
        (AUDIO, AUDIO_PROJECTOR, "audio-config", config.audio, limits["audio"]),
    )
    for tower, projector, name, section, items in towers:
        if section is None or config.text is None or config.text_only:
            continue
        try:
            expected = tower_tensors(tower, section, config.text.hidden_size)
        except ValueError as reason:
            yield error(name, str(reason), file=CONFIG, key=name.replace("-", "_"), remedy=_AGAIN)
            continue
        quantized = [each for part in (tower, projector) for each in parts.get(part, ()) if each.endswith("_packed")]
        if not items:
            continue
        if quantized:
            yield error(
                "tensor-quantized",
                f"{tower}: vLLM {ENGINE_VERSION} cannot load its {len(quantized)} quantized tensors, such as "
                f"{quantized[0]}",
                remedy="leave towers and projectors at full precision",
            )
            continue
        for part, plains in zip((tower, projector), expected, strict=True):
            known[part] = {plain.name for plain in plains}
            for plain in plains:
                if tensor := parts.get(part, {}).get(plain.name):
                    yield from _misshapen(tensor, plain.shape, _FLOAT)
                else:
                    yield _faulty("tower-missing", f"{part}.{plain.name} is not stored")
