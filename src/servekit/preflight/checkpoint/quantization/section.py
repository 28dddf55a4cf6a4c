"""Reads quantization_config, and reports what vLLM 0.20.2 or this endpoint would not serve."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import CONFIG, ModelConfig
from servekit.preflight.checkpoint.quantization.scheme import WeightScheme
from servekit.preflight.checkpoint.quantization.weight_args import WeightArgs, read_weight_args
from servekit.preflight.findings import Finding, error, has_errors, warning

METHOD: Final = "compressed-tensors"
FORMAT: Final = "pack-quantized"
_OVER_GROUPS: Final = (FORMAT, "mixed-precision", None)
"""What the section's own format may be where each group names its own."""
_PROFILE: Final = WeightArgs(num_bits=4, group_size=128, strategy="group")
_BITS: Final = (4, 8)
REQUANTIZE: Final = f"quantize to {_PROFILE}"
_ENDPOINT: Final = "this endpoint serves W4A16, packed integer weights with 16-bit activations"

Say = Callable[..., Finding]
"""Makes a finding about a key of the section: severity, name, key, message, remedy."""


def quant_method(raw: Mapping[str, Any]) -> str:
    """Return the section's method as vLLM reads it; empty if it names none."""
    method = raw.get("quant_method")
    return method.lower().replace("compressed_tensors", METHOD) if isinstance(method, str) else ""


def check_quantization(
    config: ModelConfig, wanted: str | None, target: str
) -> tuple[WeightScheme | None, list[Finding]]:
    """Read the declared weight scheme, and report its faults; `wanted` is the profile's `quantization`.

    Returns no scheme if the section cannot be used.
    """
    raw, say = config.quantization, saying(config.quantization_key)
    if raw is None:
        missing = say(
            error,
            "quantization-missing",
            "",
            f"is missing, but the profile sets quantization: {wanted}",
            "serve the quantized checkpoint; a baseline run needs another profile",
        )
        return None, [] if wanted is None else [missing]
    method = quant_method(raw)
    if method != METHOD or wanted not in {None, METHOD}:
        return None, [
            say(
                error,
                "quantization-method",
                "quant_method",
                (
                    f"is {method!r}"
                    if method
                    else "is missing, so another tool than compressed-tensors wrote the section"
                )
                + (f", the profile sets {wanted}" if wanted not in {None, METHOD} else ""),
                f"serve a checkpoint quantized with {METHOD}",
            )
        ]
    groups, findings = _read_groups(raw, say)
    findings += _check_entries(raw, groups, say)
    usable = not has_errors(findings)
    findings += _check_rest(raw, target, say)
    if not usable:
        return None, findings
    targets = {entry: group.args for group in groups for entry in group.targets}
    return WeightScheme(targets, tuple(raw.get("ignore") or ()), text_only=config.text_only), findings


@dataclass(frozen=True)
class _Group:
    name: str
    targets: tuple[str, ...]
    args: WeightArgs


def saying(section: str) -> Say:
    """Return what makes findings about the section, which may be a part of text_config."""

    def say(report: Say, name: str, key: str, message: str, remedy: str = "") -> Finding:
        return report(name, message, file=CONFIG, key=f"{section}.{key}".rstrip("."), remedy=remedy)

    return say


def _read_groups(raw: Mapping[str, Any], say: Say) -> tuple[list[_Group], list[Finding]]:
    """Return the groups that vLLM does not leave out, and the findings of each."""
    declared = raw.get("config_groups")
    findings: list[Finding] = []
    groups: list[_Group] = []
    for name, group in declared.items() if isinstance(declared, dict) else ():
        key = f"config_groups.{name}"
        targets = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(targets, list) or not all(isinstance(each, str) for each in targets):
            findings.append(say(error, "quantization-groups", key, "has no list of targets", REQUANTIZE))
            continue
        if len(targets) == 1 and targets[0].endswith("Attention"):
            continue  # vLLM leaves it out: the KV cache's scales are what counts
        args, found = _read_weights(group, key, say)
        found += _check_format(raw, group, key, say)
        if args and not found and str(args) != str(_PROFILE):
            message = f"are {args}; the profile was measured with {_PROFILE}"
            found.append(say(warning, "quantization-scheme", f"{key}.weights", message))
        findings += found
        if args:
            groups.append(_Group(name, tuple(targets), args))
    if not groups and not findings:
        findings.append(say(error, "quantization-groups", "config_groups", "quantizes no weights", REQUANTIZE))
    return groups, findings


def _check_format(raw: Mapping[str, Any], group: Mapping[str, Any], key: str, say: Say) -> Iterator[Finding]:
    own, over = group.get("format"), raw.get("format")
    if own not in (FORMAT, None):
        yield say(error, "quantization-format", f"{key}.format", f"is {own!r}, not {FORMAT!r}: {_ENDPOINT}", REQUANTIZE)
    elif over not in (_OVER_GROUPS if own else (FORMAT,)):
        yield say(error, "quantization-format", "format", f"is {over!r}, not {FORMAT!r}: {_ENDPOINT}", REQUANTIZE)


def _read_weights(group: Mapping[str, Any], key: str, say: Say) -> tuple[WeightArgs | None, list[Finding]]:
    raw = group.get("weights")
    args, reasons = read_weight_args(raw)
    findings = []
    if reasons:
        message = f"compressed-tensors rejects it: {reasons}"
        findings.append(say(error, "quantization-groups", f"{key}.weights", message, "correct it, or quantize again"))
    bits = raw.get("num_bits", args.num_bits if args else None) if isinstance(raw, dict) else None
    integer = isinstance(raw, dict) and str(raw.get("type", "int")).lower() == "int"
    if integer and type(bits) is int and bits not in _BITS:
        message = f"is int{bits}: vLLM {ENGINE_VERSION} has kernels for packed int4 and int8 only"
        findings.append(say(error, "quantization-bits", f"{key}.weights.num_bits", message, REQUANTIZE))
    elif isinstance(raw, dict) and not integer:
        message = f"is {raw.get('type')}{bits}: {_ENDPOINT}"
        findings.append(say(error, "quantization-bits", f"{key}.weights.type", message, REQUANTIZE))
    elif args and (args.kind not in {"group", "channel"} or args.dynamic):
        message = f"quantizes by {args.kind}{', dynamic' if args.dynamic else ''}: vLLM {ENGINE_VERSION} runs packed "
        message += "integers by group or channel, with scales from the checkpoint"
        findings.append(say(error, "quantization-bits", f"{key}.weights", message, REQUANTIZE))
    if group.get("input_activations"):
        message = f"is set, so the activations are quantized too: {_ENDPOINT}"
        findings.append(
            say(error, "quantization-activations", f"{key}.input_activations", message, "quantize the weights only")
        )
    return args, findings


def _check_entries(raw: Mapping[str, Any], groups: list[_Group], say: Say) -> Iterator[Finding]:
    ignore = raw.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(entry, str) for entry in ignore):
        yield say(error, "quantization-groups", "ignore", "must be a list of names", "write [] to ignore nothing")
        return
    targets = [(f"config_groups.{group.name}.targets", entry) for group in groups for entry in group.targets]
    for key, entry in [*targets, *(("ignore", entry) for entry in ignore)]:
        try:
            re.compile(entry.removeprefix("re:") if entry.startswith("re:") else "")
        except re.error as problem:
            message = f"holds {entry!r}, which cannot be compiled: {problem}"
            yield say(error, "quantization-pattern", key, message, "correct the pattern")


def _check_rest(raw: Mapping[str, Any], target: str, say: Say) -> Iterator[Finding]:
    if sparsity := raw.get("sparsity_config"):
        yield from _check_sparsity(sparsity, say)
    if _rotates(raw.get("transform_config")):
        found = "rotates activations while the model runs"
        if target == "cpu":
            message = f"{found}: the CPU engine has no kernel for it"
            yield say(error, "quantization-transforms", "transform_config", message, "serve it on a GPU")
        else:
            message = f"{found}: vLLM {ENGINE_VERSION} applies it, preflight does not check it"
            yield say(warning, "quantization-transforms", "transform_config", message)


def _rotates(transforms: object) -> bool:
    """Whether vLLM transforms inputs or outputs of layers; what is in the weights already needs nothing."""
    groups = transforms.get("config_groups") if isinstance(transforms, dict) else None
    schemes = [each for each in groups.values() if isinstance(each, dict)] if isinstance(groups, dict) else []
    applied = [each for scheme in schemes for each in scheme.get("apply") or () if isinstance(each, dict)]
    return any(each.get("location") in {"input", "output"} for each in applied)


def _check_sparsity(sparsity: object, say: Say) -> Iterator[Finding]:
    given = sparsity if isinstance(sparsity, dict) else {}
    stored, key, remedy = given.get("format"), "sparsity_config", "leave sparsity_config out"
    if not isinstance(stored, str):
        yield say(error, "sparsity", key, "names no format: compressed-tensors rejects it", remedy)
    elif given.get("sparsity_structure") == "2:4" and given.get("targets"):
        yield say(error, "sparsity", key, f"is 2:4: vLLM {ENGINE_VERSION} has no kernels for it any more", remedy)
    elif stored != "dense":
        message = f"names the format {stored!r}: vLLM {ENGINE_VERSION} does not read it and expects {FORMAT} weights"
        yield say(warning, "sparsity", key, message, remedy)
