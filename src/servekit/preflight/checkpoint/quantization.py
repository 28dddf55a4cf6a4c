"""quantization_config: whether it fits the profile, and which layers vLLM therefore expects to be quantized.

The rules are those of vLLM 0.20.2, model_executor/layers/quantization/compressed_tensors: compressed_tensors.py (which
schemes have kernels) and utils.py (how targets and the ignore list are matched).
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import CONFIG
from servekit.preflight.checkpoint.naming import FUSED, engine_name
from servekit.preflight.checkpoint.text_config import TextConfig
from servekit.preflight.findings import Finding, error, warning

METHOD: Final = "compressed-tensors"
FORMAT: Final = "pack-quantized"
PROFILE_BITS: Final = 4
PROFILE_GROUP: Final = 128
_SECTION: Final = "quantization_config"

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

    def groups(self, inputs: int) -> int:
        """Scales per output of a layer with so many inputs."""
        return 1 if self.group_size < 1 else inputs // self.group_size

    def quantizes(self, module: str) -> bool:
        """Whether vLLM expects the packed weight of this linear module, given by its name in the checkpoint."""
        by_class = any("linear".startswith(target.lower()) for target in self.targets if "." not in target)
        return (by_class or _matches(module, self.targets)) and not _matches(module, self.ignore)


def _matches(module: str, patterns: tuple[str, ...]) -> bool:
    # vLLM renames modules before it matches them. It renames a plain entry too, but not a regular expression.
    name = engine_name(module)
    for pattern in patterns:
        if pattern.startswith("re:"):
            with contextlib.suppress(re.error):
                if re.match(pattern[3:], name):
                    return True
        elif name in {pattern, engine_name(pattern)}:
            return True
    return False


def check_quantization(raw: Mapping[str, Any] | None, wanted: str | None) -> tuple[WeightScheme | None, list[Finding]]:
    """Read the declared weight scheme, and report its faults; `wanted` is the profile's `quantization`."""
    if raw is None:
        missing = _wrong(
            "quantization-missing",
            "",
            f"is missing, but the profile sets quantization: {wanted}",
            "serve the quantized checkpoint; a baseline run needs another profile",
        )
        return None, [] if wanted is None else [missing]
    method = raw.get("quant_method")
    if method != METHOD or wanted not in {None, METHOD}:
        return None, [
            _wrong(
                "quantization-method",
                "quant_method",
                f"is {method!r}{f', the profile sets {wanted}' if wanted else ''}; servekit supports only {METHOD}",
                f"serve a checkpoint quantized with {METHOD}",
            )
        ]
    scheme, findings = _read_scheme(raw)
    return scheme, _check_storage(raw) + findings


def _wrong(name: str, key: str, message: str, remedy: str) -> Finding:
    return error(name, message, file=CONFIG, key=f"{_SECTION}.{key}".rstrip("."), remedy=remedy)


def _check_storage(raw: Mapping[str, Any]) -> list[Finding]:
    sparsity = raw.get("sparsity_config")
    stored = sparsity.get("format") if isinstance(sparsity, dict) else sparsity
    checks = (
        (
            raw.get("format") != FORMAT,
            _wrong(
                "quantization-format",
                "format",
                f"is {raw.get('format')!r}, not {FORMAT!r}: vLLM {ENGINE_VERSION} has no weight-only kernel for it",
                f"save the checkpoint compressed, with format {FORMAT}",
            ),
        ),
        (
            sparsity and stored != "dense",
            _wrong(
                "sparsity",
                "sparsity_config",
                f"stores the weights as {stored!r}: vLLM {ENGINE_VERSION} has no kernel for unstructured sparsity",
                "save the pruned weights dense and leave sparsity_config out",
            ),
        ),
    )
    return [finding for found, finding in checks if found]


def _read_scheme(raw: Mapping[str, Any]) -> tuple[WeightScheme | None, list[Finding]]:
    groups, ignore = raw.get("config_groups"), raw.get("ignore")
    usable = [
        group
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict) and isinstance(group.get("targets"), list)
    ]
    if len(usable) != 1:
        return None, [
            _wrong(
                "quantization-groups",
                "config_groups",
                f"must hold one group with targets and weights, not {len(usable)}",
                "quantize all layers by one scheme",
            )
        ]
    group, weights = usable[0], usable[0]["weights"]
    findings = _check_weights(weights)
    if group.get("input_activations"):
        findings.append(
            _wrong(
                "quantization-activations",
                "config_groups",
                "has input_activations: the activations are quantized too, which is not W4A16",
                "quantize the weights only",
            )
        )
    if any(finding.name == "quantization-bits" for finding in findings):
        return None, findings
    return WeightScheme(
        bits=weights["num_bits"],
        group_size=weights.get("group_size") if type(weights.get("group_size")) is int else -1,
        symmetric=weights.get("symmetric") is not False,
        targets=tuple(str(target) for target in group["targets"]),
        ignore=tuple(str(entry) for entry in ignore) if isinstance(ignore, list) else (),
    ), findings


def _check_weights(weights: Mapping[str, Any]) -> list[Finding]:
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
    if bits not in (4, 8) or kind != "int" or strategy not in ("group", "channel"):
        return [
            _wrong(
                "quantization-bits",
                "config_groups",
                f"is {kind}{bits} by {strategy}; vLLM {ENGINE_VERSION} runs packed int4 and int8 per group or channel",
                f"quantize to int{PROFILE_BITS} in groups of {PROFILE_GROUP}",
            )
        ]
    group, symmetric = weights.get("group_size"), weights.get("symmetric") is not False
    if (bits, group, symmetric) == (PROFILE_BITS, PROFILE_GROUP, True):
        return []
    return [
        warning(
            "quantization-scheme",
            f"weights are {'symmetric' if symmetric else 'asymmetric'} int{bits} in groups of {group}; "
            f"the profile was measured with symmetric int{PROFILE_BITS} in groups of {PROFILE_GROUP}",
            file=CONFIG,
            key=f"{_SECTION}.config_groups",
        )
    ]


def check_ignore_list(scheme: WeightScheme, text: TextConfig | None, *, audio: bool) -> Iterator[Finding]:
    """Report parts that the ignore list must cover but does not, and layers that it splits but vLLM fuses.

    vLLM 0.20.2 never quantizes the towers and projectors (models/gemma4_mm.py) nor an embedding. So a gap in the list
    is a warning; the headers show whether quantized tensors are stored there.
    """
    gaps = [
        part for part, module in _FULL_PRECISION.items() if scheme.quantizes(module) and (audio or "audio" not in part)
    ]
    if gaps:
        yield warning(
            "ignore-list",
            f"does not cover {', '.join(gaps)}",
            file=CONFIG,
            key=f"{_SECTION}.ignore",
            remedy="add them, as the recipe does",
        )
    for layer in range(text.num_hidden_layers if text else 0):
        for fused, parts in FUSED.items():
            modules = [f"model.language_model.layers.{layer}.{fused[0]}.{part}" for part in parts]
            if len({_matches(module, scheme.ignore) for module in modules}) > 1:
                yield _wrong(
                    "ignore-split",
                    "ignore",
                    f"covers only some of {', '.join(parts)} in layer {layer}; vLLM fuses them into {fused[1]}",
                    "ignore all of them or none",
                )
                return
