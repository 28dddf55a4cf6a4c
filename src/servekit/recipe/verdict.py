"""Judges the figures of a compressed checkpoint: what was left out or done wrongly."""

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from servekit.errors import Finding, Severity, in_order

_DECODER: Final = re.compile(r"(?:.*\.)?language_model\.layers\.(\d+)\.(.+)")
_PRUNED: Final = re.compile(r".*\.mlp\.(gate|up|down)_proj")
_UNUSED: Final = re.compile(r".*\.layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight")
_TOLERANCE: Final = 0.0005
"""Of a matrix's sparsity: SparseGPT counts in blocks of 128 columns, and BF16 weights are often equal."""
_SMALLEST_ZERO: Final = 0.98
"""Of the smallest 2 % of a matrix, pruning makes all but a few zero. GPTQ alone leaves about 8 % of them."""
_MOVED: Final = 0.02
"""GPTQ moves 10 to 40 % of the weights away from the nearest int4 value, pruning alone less than 1 %."""
_SCHEME: Final = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 128, "actorder": "static"}
_SCALES: Final = (0.5, 1.5)
_OUTLIER: Final = 4
"""Times the median error of the matrices of one role."""
_RECORDED: Final = (2.0, 0.1)
"""Factor and addend by which a matrix's error on other texts may exceed the recorded one."""
Figures = Mapping[str, Any]


@dataclass
class Measured:
    """What the program reports."""

    matrices: dict[str, Figures] = field(default_factory=dict)
    tensors: Mapping[str, list[str]] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By matrix: squared error of its output, and that of rounding to the nearest, as shares of the output."""

    def add(self, report: Mapping[str, Any]) -> None:
        """Add one report."""
        if "matrix" in report:
            self.matrices[report["matrix"]] = report
        else:
            for name, value in report.items():
                setattr(self, name, value)


@dataclass(frozen=True)
class Expected:
    """What the checkpoint should be."""

    sparsity: float
    first_shared: int
    """The first layer that uses the K and V of an earlier one."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """quantization.yaml; empty if there is none."""
    scheme: Mapping[str, Any] = field(default_factory=dict)
    """How config.json says that the weights are quantized."""


def judge(measured: Measured, expected: Expected) -> tuple[Finding, ...]:
    """Return all that is wrong; one finding for each kind, with the first matrix or tensor and the number of others."""
    return in_order(finding for rule in _RULES for finding in _gathered(rule.__name__, list(rule(measured, expected))))


def _gathered(rule: str, wrong: list[tuple[str, str]]) -> Iterator[Finding]:
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for what, subject in wrong:
        kinds[what].append(subject)
    severity = Severity.WARNING if rule == "outliers" else Severity.ERROR
    for what, subjects in kinds.items():
        others = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        yield Finding(what, f"{subjects[0]}{others}", severity=severity, name=rule)


Wrong = Iterable[tuple[str, str]]


def coverage(measured: Measured, _: Expected) -> Wrong:
    """Require that every matrix of the decoder's layers is quantized, and nothing else is."""
    for name in measured.matrices:
        if not _DECODER.fullmatch(name):
            yield "is quantized, but is not in a decoder layer", name
    for name in measured.tensors.get("plain", []):
        yield "is not quantized", name
    if not measured.matrices:
        yield "has no packed int4 weights", "the checkpoint"


def scheme(_: Measured, expected: Expected) -> Wrong:
    """Require the recipe's scheme."""
    for key, wanted in _SCHEME.items():
        if expected.scheme and (got := expected.scheme.get(key)) != wanted:
            yield f"is {got}, the recipe has {wanted}", f"quantization_config: {key}"


def untouched(measured: Measured, expected: Expected) -> Wrong:
    """Require every other tensor to be the base's; layers with shared K and V may lack what they do not use."""
    for name in measured.tensors.get("changed", []):
        yield "differs from the base's tensor", name
    for name in measured.tensors.get("missing", []):
        unused = _UNUSED.fullmatch(name)
        if not unused or int(unused[1]) < expected.first_shared:
            yield "is in the base only", name
    for name in measured.tensors.get("added", []):
        yield "is not in the base", name


def scales(measured: Measured, _: Expected) -> Wrong:
    """Require each scale to be finite, positive, and to fit its group of the base's weights."""
    low, high = _SCALES
    for name, figures in measured.matrices.items():
        if figures["bad_scales"]:
            yield "has scales that are not finite and positive", name
        elif "scale_ratio" in figures and not low <= figures["scale_ratio"][0] <= figures["scale_ratio"][2] <= high:
            yield f"has scales that do not fit the base's weights (wanted {low} to {high} of the group's range)", name


def pruning(measured: Measured, expected: Expected) -> Wrong:
    """Require the wanted sparsity of the MLP, by the mask if there is one, and that none of its zeros is lost."""
    with_mask = any("pruned" in figures for figures in measured.matrices.values())
    for name, figures in _decoder(measured):
        wanted = expected.sparsity if _PRUNED.fullmatch(name) else 0.0
        pruned = figures.get("pruned", 0.0)
        if with_mask and abs(pruned - wanted) > _TOLERANCE:
            yield f"is not pruned as intended: its mask should have {wanted:.2%} of the weights", name
        if figures.get("pruned_lost"):
            yield "has weights that were pruned and are not zero", name
        if wanted and not with_mask and figures.get("smallest_zero", 1) < _SMALLEST_ZERO:
            yield "is not pruned: many of its smallest weights are not zero", name


def rounding(measured: Measured, _: Expected) -> Wrong:
    """Require what GPTQ does: it moves weights away from the nearest value to make up for the errors of others."""
    for name, figures in _decoder(measured):
        if figures.get("moved", 1) < _MOVED:
            yield "is rounded to the nearest values: GPTQ left out", name


def outputs(measured: Measured, expected: Expected) -> Wrong:
    """Require outputs nearer to the base's, on texts, than rounding would give, and as near as was recorded."""
    factor, addend = _RECORDED
    recorded = dict(_recorded_ratios(expected.record))
    for name in (each for each, ratio in recorded.items() if ratio >= 1):
        yield "was no nearer to the base's output on its calibration data than rounding", name
    for name, (error, of_rounding) in measured.outputs.items():
        ratio = error / of_rounding if of_rounding else 0.0
        if ratio >= 1:
            yield "has an output further from the base's than rounding would give: calibrated on other inputs", name
        elif name in recorded and ratio > factor * recorded[name] + addend:
            yield "has a much larger error on these texts than on its calibration: calibrated on other inputs", name


def outliers(measured: Measured, _: Expected) -> Wrong:
    """Find matrices with a far larger error than the others of their role."""
    roles: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
    for name, figures in _decoder(measured):
        if "error" in figures:
            roles[name.rpartition(".")[2]].append((name, figures["error"]))
    for of_role in roles.values():
        middle = statistics.median(error for _, error in of_role)
        for name, error in of_role:
            if error > _OUTLIER * middle:
                yield f"has an error of {error:.3g}, {error / middle:.1f} times the median of its role", name


def hashes(measured: Measured, expected: Expected) -> Wrong:
    """Require every file to be the one that was written."""
    for name, wanted in expected.record.get("sha256", {}).items():
        if measured.sha256.get(name) != wanted:
            yield "differs from the file that `servekit quantize` wrote", name


_RULES: Final[tuple[Callable[[Measured, Expected], Wrong], ...]] = (
    coverage,
    scheme,
    untouched,
    scales,
    pruning,
    rounding,
    outputs,
    outliers,
    hashes,
)


def _decoder(measured: Measured) -> Iterator[tuple[str, Figures]]:
    return ((name, figures) for name, figures in measured.matrices.items() if _DECODER.fullmatch(name))


def _recorded_ratios(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for layer, each in record.get("steps", {}).get("quantize", {}).items():
        for module, figures in each["matrices"].items():
            name = f"model.language_model.layers.{layer}.{module}"
            yield name, figures["error"] / (figures["error_of_rounding"] or 1.0)


def layer_rows(measured: Measured) -> list[list[str]]:
    """Return the table for people: the figures of each layer, over its matrices."""
    layers: defaultdict[int, list[tuple[str, Figures]]] = defaultdict(list)
    for name, figures in _decoder(measured):
        if found := _DECODER.fullmatch(name):
            layers[int(found[1])].append((name, figures))
    return [_row(layer, matrices, measured.outputs) for layer, matrices in sorted(layers.items())]


HEAD: Final = ("layer", "pruned", "lost", "zeros", "moved", "scales", "error", "output", "of rounding")
"""Columns of `layer_rows`: shares of weights, the range of the scales, squared errors as shares of the whole."""


def _row(layer: int, matrices: list[tuple[str, Figures]], measured: Mapping[str, tuple[float, float]]) -> list[str]:
    def mean(key: str) -> str:
        values = [(each[key], each["elements"]) for _, each in matrices if key in each]
        return f"{sum(v * n for v, n in values) / sum(n for _, n in values):.2%}" if values else "-"

    ratios = [each["scale_ratio"] for _, each in matrices if "scale_ratio" in each]
    pairs = [measured[name] for name, _ in matrices if name in measured]
    of_outputs = [f"{max(pair[side] for pair in pairs):.2%}" for side in (0, 1)] if pairs else ["-", "-"]
    lost = sum(each.get("pruned_lost", 0) for _, each in matrices)
    of_scales = f"{min(r[0] for r in ratios):.2f}-{max(r[2] for r in ratios):.2f}" if ratios else "-"
    shares = [mean(key) for key in ("zeros", "moved")]
    return [str(layer), mean("pruned"), str(lost), *shares, of_scales, mean("error"), *of_outputs]
