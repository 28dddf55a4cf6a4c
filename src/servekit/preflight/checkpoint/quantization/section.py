"""Reads quantization_config, and reports what vLLM 0.20.2 or this endpoint would not serve."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.config_file import ModelConfig
from servekit.preflight.checkpoint.quantization.companions import check_companions
from servekit.preflight.checkpoint.quantization.saying import Say, saying
from servekit.preflight.checkpoint.quantization.scheme import WeightScheme, compiled
from servekit.preflight.checkpoint.quantization.weight_args import WeightArgs, read_weight_args
from servekit.preflight.findings import Finding, error, has_errors, warning

METHOD: Final = "compressed-tensors"
FORMAT: Final = "pack-quantized"
_MARLIN: Final = "marlin-24"
"""A layout of 2:4 sparse weights that vLLM dropped; over groups that say pack-quantized, it would be misread."""
_OF_ACTIVATIONS: Final = ("naive-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized")
"""Formats for which vLLM rejects integer groups that name no input_activations."""
_PROFILE: Final = WeightArgs(num_bits=4, group_size=128, strategy="group")
_BITS: Final = (4, 8)
REQUANTIZE: Final = f"quantize to {_PROFILE}"
_ENDPOINT: Final = "this endpoint serves W4A16, packed integer weights with 16-bit activations"


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
    scheme = None
    if not has_errors(findings):
        targets = {entry: group.args for group in groups for entry in group.targets}
        scheme = WeightScheme(targets, tuple(raw.get("ignore") or ()), text_only=config.text_only)
    used = scheme.used_targets(config.text) if scheme and config.text else None
    for group in groups:
        if used is None or group.rejected or used.intersection(group.targets):
            findings += group.faults
    usable = not has_errors(findings)
    findings += check_companions(raw, target, say)
    return scheme if usable else None, findings


@dataclass(frozen=True)
class _Group:
    name: str
    targets: tuple[str, ...]
    args: WeightArgs
    rejected: bool
    """Whether vLLM rejects it where it reads the section, even if no layer uses it."""
    faults: list[Finding]


def _read_groups(raw: Mapping[str, Any], say: Say) -> tuple[list[_Group], list[Finding]]:
    """Return the groups that vLLM does not leave out, and the findings that do not belong to one of them."""
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
        args, reasons = read_weight_args(group.get("weights"))
        if args is None:
            message = f"compressed-tensors rejects it: {reasons}"
            findings.append(
                say(error, "quantization-groups", f"{key}.weights", message, "correct it, or quantize again")
            )
        faults = [*_check_weights(group, args, key, say), *_check_format(raw, group, key, say)]
        if args is None:
            findings += faults
            continue
        if not faults and str(args) != str(_PROFILE):
            message = f"are {args}; the profile was measured with {_PROFILE}"
            faults.append(say(warning, "quantization-scheme", f"{key}.weights", message))
        groups.append(_Group(name, tuple(targets), args, _is_rejected(raw, group, args), faults))
    if not groups and not findings:
        findings.append(say(error, "quantization-groups", "config_groups", "quantizes no weights", REQUANTIZE))
    return groups, findings


def _is_rejected(raw: Mapping[str, Any], group: Mapping[str, Any], args: WeightArgs) -> bool:
    """Whether vLLM ends where it reads the group (compressed_tensors.py, _quantization_scheme_map_from_config)."""
    if activations := group.get("input_activations"):
        return read_weight_args(activations)[0] is None
    stored = raw.get("format") if group.get("format") is None else group["format"]
    return stored in _OF_ACTIVATIONS and args.type == "int"


def _check_format(raw: Mapping[str, Any], group: Mapping[str, Any], key: str, say: Say) -> Iterator[Finding]:
    """Check the format of a group, which is the section's if the group names none."""
    own = group.get("format")
    over = own is None or raw.get("format") == _MARLIN
    stored, key = (raw.get("format"), "format") if over else (own, f"{key}.format")
    if stored != FORMAT:
        yield say(error, "quantization-format", key, f"is {stored!r}, not {FORMAT!r}: {_ENDPOINT}", REQUANTIZE)


def _check_weights(group: Mapping[str, Any], args: WeightArgs | None, key: str, say: Say) -> Iterator[Finding]:
    given = group.get("weights")
    raw = given if isinstance(given, dict) else {}
    bits = args.num_bits if args else raw.get("num_bits")
    integer = str(raw.get("type", "int")).lower() == "int"
    if not integer:
        message = f"is {raw.get('type')}{bits}: {_ENDPOINT}"
        yield say(error, "quantization-bits", f"{key}.weights.type", message, REQUANTIZE)
    elif type(bits) is int and bits not in _BITS:
        message = f"is int{bits}: vLLM {ENGINE_VERSION} has kernels for packed int4 and int8 only"
        yield say(error, "quantization-bits", f"{key}.weights.num_bits", message, REQUANTIZE)
    elif args and (args.kind not in {"group", "channel"} or args.dynamic):
        message = f"quantizes by {args.kind}{', dynamic' if args.dynamic else ''}: vLLM {ENGINE_VERSION} runs packed "
        message += "integers by group or channel, with scales from the checkpoint"
        yield say(error, "quantization-bits", f"{key}.weights", message, REQUANTIZE)
    if group.get("input_activations"):
        message = f"is set, so the activations are quantized too: {_ENDPOINT}"
        yield say(error, "quantization-activations", f"{key}.input_activations", message, "quantize the weights only")


def _check_entries(raw: Mapping[str, Any], groups: list[_Group], say: Say) -> Iterator[Finding]:
    ignore = raw.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(entry, str) for entry in ignore):
        yield say(error, "quantization-groups", "ignore", "must be a list of names", "write [] to ignore nothing")
        return
    targets = [(f"config_groups.{group.name}.targets", entry) for group in groups for entry in group.targets]
    for key, entry in [*targets, *(("ignore", entry) for entry in ignore)]:
        try:
            compiled(entry.removeprefix("re:") if entry.startswith("re:") else "")
        except re.error as problem:
            message = f"holds {entry!r}, which cannot be compiled: {problem}"
            yield say(error, "quantization-pattern", key, message, "correct the pattern")
