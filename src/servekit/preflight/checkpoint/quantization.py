"""quantization_config: whether it says what the profile asks for, and which layers it makes vLLM expect quantized.

Rules read in vLLM 0.20.2, model_executor/layers/quantization/compressed_tensors: compressed_tensors.py (which schemes
have kernels) and utils.py (how targets and the ignore list are matched).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from servekit.preflight.checkpoint.config_file import CONFIG
from servekit.preflight.checkpoint.naming import FUSED, engine_name
from servekit.preflight.checkpoint.text_config import TextConfig
from servekit.preflight.findings import Finding, error, warning

METHOD: Final = "compressed-tensors"
FORMAT: Final = "pack-quantized"
SUPPORTED_BITS: Final = (4, 8)
CARD_BITS: Final = 4
CARD_GROUP: Final = 128

_FULL_PRECISION: Final = {
    "the vision tower": "model.vision_tower.encoder.layers.0.mlp.up_proj.linear",
    "the audio tower": "model.audio_tower.layers.0.self_attn.q_proj.linear",
    "the image projector": "model.embed_vision.embedding_projection",
    "the audio projector": "model.embed_audio.embedding_projection",
    "lm_head": "lm_head",
}


@dataclass(frozen=True)
class WeightScheme:
    """How the linear layers are stored: `bits` per weight, `group_size` inputs per scale (-1: one per output)."""

    bits: int
    group_size: int
    symmetric: bool
    targets: tuple[str, ...]
    ignore: tuple[str, ...]

    @property
    def pack_factor(self) -> int:
        """Weights in one stored 32-bit integer."""
        return 32 // self.bits

    def groups(self, inputs: int) -> int:
        """Scales per output of a layer with so many inputs."""
        return 1 if self.group_size < 1 else inputs // self.group_size

    def ignores(self, module: str) -> bool:
        """Whether the ignore list names this module, given under its checkpoint name."""
        return _matches(module, self.ignore)

    def quantizes(self, module: str) -> bool:
        """Whether vLLM will expect this linear module's weight packed."""
        by_class = any("linear".startswith(target.lower()) for target in self.targets if "." not in target)
        return (by_class or _matches(module, self.targets)) and not self.ignores(module)


def _matches(module: str, patterns: tuple[str, ...]) -> bool:
    # vLLM renames modules before it matches: a plain entry is renamed with them, a regular expression is not.
    name = engine_name(module)
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                if re.match(pattern[3:], name):
                    return True
            except re.error:
                continue
        elif name in {pattern, engine_name(pattern)}:
            return True
    return False


def check_quantization(
    raw: Mapping[str, Any] | None, wanted: str | None
) -> tuple[WeightScheme | None, tuple[Finding, ...]]:
    """Read the weight scheme declared, and what is wrong with it; `wanted` is the profile's `quantization`."""
    if raw is None:
        if wanted is None:
            return None, ()
        return None, (
            error(
                "quantization-missing",
                f"the profile says quantization: {wanted}, config.json has no quantization_config",
                subject=CONFIG,
                remedy="serve the quantized checkpoint; a baseline run takes another profile",
            ),
        )
    if raw.get("quant_method") != METHOD or (wanted not in {None, METHOD}):
        asked = f", the profile {wanted}" if wanted else ""
        return None, (
            error(
                "quantization-method",
                f"config.json says quant_method {raw.get('quant_method')!r}{asked}; only {METHOD} is supported",
                subject=CONFIG,
                remedy=f"serve a checkpoint quantized with {METHOD}",
            ),
        )
    findings = [*_check_format(raw), *_check_sparsity(raw)]
    scheme, more = _scheme(raw)
    findings.extend(more)
    return scheme, tuple(findings)


def _check_format(raw: Mapping[str, Any]) -> Iterator[Finding]:
    if raw.get("format") != FORMAT:
        yield error(
            "quantization-format",
            f"format {raw.get('format')!r} instead of {FORMAT!r}: vLLM 0.20.2 has no weight-only kernel for it",
            subject=CONFIG,
            remedy=f"save the checkpoint compressed, with format {FORMAT}",
        )


def _check_sparsity(raw: Mapping[str, Any]) -> Iterator[Finding]:
    sparsity = raw.get("sparsity_config")
    if not sparsity:
        return
    stored = sparsity.get("format") if isinstance(sparsity, dict) else sparsity
    if stored != "dense":
        yield error(
            "sparsity",
            f"sparsity_config stores the weights as {stored!r}; unstructured sparsity has no kernel in vLLM 0.20.2",
            subject=CONFIG,
            remedy="save the pruned weights dense and leave sparsity_config out",
        )


def _scheme(raw: Mapping[str, Any]) -> tuple[WeightScheme | None, list[Finding]]:
    groups = raw.get("config_groups")
    usable = [
        group
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict) and isinstance(group.get("targets"), list)
    ]
    if len(usable) != 1:
        return None, [
            error(
                "quantization-groups",
                f"config_groups must hold one group with targets and weights, it holds {len(usable)}",
                subject=CONFIG,
                remedy="quantize all layers by one scheme",
            )
        ]
    group, weights = usable[0], usable[0]["weights"]
    findings = list(_check_weights(weights))
    if group.get("input_activations"):
        findings.append(
            error(
                "quantization-activations",
                "input_activations is set: the activations are quantized too, this is not W4A16",
                subject=CONFIG,
                remedy="quantize the weights only",
            )
        )
    if any(finding.name == "quantization-bits" for finding in findings):
        return None, findings
    ignore = raw.get("ignore")
    return WeightScheme(
        bits=weights["num_bits"],
        group_size=weights.get("group_size") if type(weights.get("group_size")) is int else -1,
        symmetric=weights.get("symmetric") is not False,
        targets=tuple(str(target) for target in group["targets"]),
        ignore=tuple(str(entry) for entry in ignore) if isinstance(ignore, list) else (),
    ), findings


def _check_weights(weights: Mapping[str, Any]) -> Iterator[Finding]:
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
    if bits not in SUPPORTED_BITS or kind != "int" or strategy not in ("group", "channel"):
        yield error(
            "quantization-bits",
            f"weights are {kind}{bits} by {strategy}; vLLM 0.20.2 runs packed int4 and int8 by group or channel",
            subject=CONFIG,
            remedy="quantize to int4 in groups of 128",
        )
    elif bits != CARD_BITS or weights.get("group_size") != CARD_GROUP or weights.get("symmetric") is False:
        symmetry = "asymmetric" if weights.get("symmetric") is False else "symmetric"
        yield warning(
            "quantization-scheme",
            f"weights are {symmetry} int{bits} in groups of {weights.get('group_size')}; "
            f"the profile was measured with symmetric int{CARD_BITS} in groups of {CARD_GROUP}",
            subject=CONFIG,
        )


def check_ignore_list(scheme: WeightScheme, text: TextConfig | None, *, audio: bool) -> Iterator[Finding]:
    """Whether the ignore list covers what must stay at full precision and splits nothing vLLM fuses.

    vLLM 0.20.2 never quantizes the towers and projectors (models/gemma4_mm.py) nor an embedding, so a gap in the
    list is a warning; that tensors are stored quantized there is found from the headers.
    """
    gaps = [
        part for part, module in _FULL_PRECISION.items() if scheme.quantizes(module) and (audio or "audio" not in part)
    ]
    if gaps:
        yield warning(
            "ignore-list",
            f"quantization_config.ignore does not cover {', '.join(gaps)}",
            subject=CONFIG,
            remedy="name them in ignore, as the recipe does",
        )
    for layer in range(text.num_hidden_layers if text else 0):
        for fused, parts in FUSED.items():
            modules = [f"model.language_model.layers.{layer}.{fused[0]}.{part}" for part in parts]
            if len({scheme.ignores(module) for module in modules}) > 1:
                yield error(
                    "ignore-split",
                    f"layer {layer}: only some of {', '.join(parts)} are ignored; vLLM fuses them to {fused[1]}",
                    subject=CONFIG,
                    remedy="ignore all of them or none",
                )
                return
