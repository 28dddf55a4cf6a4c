"""quantization_config: which linear layers it quantizes, and how.

The rules are those of vLLM 0.20.2, model_executor/layers/quantization/compressed_tensors: compressed_tensors.py (which
groups count) and utils.py (how targets and the ignore list are matched).
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

from servekit.preflight.checkpoint.contents.layers import expected_modules
from servekit.preflight.checkpoint.naming import FUSED, LM_HEAD, engine_name
from servekit.preflight.checkpoint.quantization.weight_args import WeightArgs
from servekit.preflight.checkpoint.text_config import TextConfig

_CLASSES: Final = {
    "qkv_proj": "QKVParallelLinear",
    "gate_up_proj": "MergedColumnParallelLinear",
    "o_proj": "RowParallelLinear",
    "down_proj": "RowParallelLinear",
    "per_layer_input_gate": "ReplicatedLinear",
    "per_layer_projection": "ReplicatedLinear",
    "per_layer_model_projection": "ColumnParallelLinear",
    LM_HEAD: "ParallelLMHead",
}
"""vLLM's class of each linear module: a target without dots may name a part of it, such as `Linear`."""
_FLAGS: Final = re.compile(r"(?<!\\)\(\?[aims]+\)")
_FUSED_OF: Final = {part: (fused, parts) for (_, fused), parts in FUSED.items() for part in parts}


@dataclass(frozen=True)
class WeightScheme:
    """How the linear layers are stored: the arguments of each target, in the file's order, and what to leave out."""

    targets: Mapping[str, WeightArgs]
    ignore: tuple[str, ...] = ()
    text_only: bool = False

    @property
    def first(self) -> WeightArgs:
        """The arguments of the first group, for people."""
        return next(iter(self.targets.values()))

    def args_of(self, module: str) -> WeightArgs | None:
        """Return how vLLM expects the weights of this linear module of the language model; None: plain."""
        layer = self.layer(module)
        return None if layer.ignored or layer.target is None else self.targets[layer.target]

    def used_targets(self, text: TextConfig) -> set[str]:
        """Return the targets that linear layers of the language model get; vLLM quantizes nothing else."""
        modules = {LM_HEAD, *(linear.module for linear in expected_modules(text)[0])}
        layers = [self.layer(module) for module in modules]
        return {layer.target for layer in layers if layer.target is not None and not layer.ignored}

    def layer(self, module: str) -> "_Layer":
        """Return how vLLM matches the layer of this module, a name such as `layers.0.mlp.up_proj` or `lm_head`."""
        root = "" if self.text_only else "language_model."
        parent, _, leaf = f"{root}{'' if module == LM_HEAD else 'model.'}{module}".rpartition(".")
        fused, parts = _FUSED_OF.get(leaf, (leaf, ()))
        prefix = f"{parent}." if parent else ""
        return self._match(prefix + fused, [prefix + part for part in parts], _CLASSES[fused])

    def covers(self, module: str) -> bool:
        """Whether targets and ignore list mean a module that vLLM builds itself, such as one of a tower."""
        name = engine_name(module, text_only=self.text_only)
        return bool(_first(name, self._targets) or _by_class("Linear", self._targets)) and not _first(
            name, self._ignore
        )

    def _match(self, name: str, parts: list[str], kind: str) -> "_Layer":
        targets, ignore = self._targets, self._ignore
        by_part = [_first(part, targets) for part in parts]
        target = _first(name, targets) or _by_class(kind, targets) or (by_part[0] if by_part and all(by_part) else None)
        if not parts or name in ignore:
            return _Layer(name, target, ignored=bool(_first(name, ignore)), split=False)
        ignored = {bool(_first(part, ignore)) for part in parts}
        return _Layer(name, target, ignored=ignored == {True}, split=len(ignored) > 1)

    @cached_property
    def _targets(self) -> dict[str, str]:
        return self._mapped(self.targets)

    @cached_property
    def _ignore(self) -> dict[str, str]:
        return self._mapped(self.ignore)

    def _mapped(self, entries: Iterable[str]) -> dict[str, str]:
        """Return the entries by vLLM's names: it renames those with a dot, unless they are regular expressions."""
        renamed = (
            entry if entry.startswith("re:") or "." not in entry else engine_name(entry, text_only=self.text_only)
            for entry in entries
        )
        return dict(zip(renamed, entries, strict=True))


@dataclass(frozen=True)
class _Layer:
    name: str
    target: str | None
    ignored: bool
    split: bool
    """Whether the ignore list covers only some of the parts that vLLM fuses."""


def _first(name: str, entries: Mapping[str, str]) -> str | None:
    return next((entry for mapped, entry in entries.items() if _equal_or_matching(name, mapped)), None)


def _by_class(kind: str, entries: Mapping[str, str]) -> str | None:
    for mapped, entry in entries.items():
        if _equal_or_matching(kind, mapped) or (not mapped.startswith("re:") and mapped.lower() in kind.lower()):
            return entry
    return None


def _equal_or_matching(name: str, entry: str) -> bool:
    return bool(compiled(entry[3:]).match(name)) if entry.startswith("re:") else name == entry


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern, or raise re.error. vLLM uses the regex library, which allows global flags at any place."""
    flags = "".join(_FLAGS.findall(pattern))
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # a set in a set, as [[:alpha:]]
        return re.compile(flags + _FLAGS.sub("", pattern))
