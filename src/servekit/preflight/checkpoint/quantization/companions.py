"""What stands beside the groups of quantization_config: sparsity and transforms, as compressed-tensors reads them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.quantization.saying import Say
from servekit.preflight.checkpoint.quantization.weight_args import Dtype
from servekit.preflight.checkpoint.schema.faults import faults_of
from servekit.preflight.findings import Finding, error, warning

_LEAVE: Final = "leave it out"


class _Sparsity(BaseModel):
    format: str
    targets: list[str] | None = None
    ignore: list[str] | None = None
    global_sparsity: float | None = 0.0
    sparsity_structure: str | None = "unstructured"


_Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class _Applied(BaseModel, extra="forbid"):
    targets: _Names
    location: Literal["input", "weight_input", "weight_output", "output", "k_cache", "q_attn"]
    inverse: bool = False
    ignore: _Names = []


class _Transform(BaseModel, extra="forbid"):
    type: str
    apply: list[_Applied] = []
    randomize: bool = False
    requires_grad: bool = False
    head_dim: int | None = None
    precision: Dtype = "float32"


class _Transforms(BaseModel, extra="forbid"):
    config_groups: dict[str, _Transform]


_SECTIONS: Final[Mapping[str, type[BaseModel]]] = {"sparsity_config": _Sparsity, "transform_config": _Transforms}
_FINDINGS: Final = {"sparsity_config": "sparsity", "transform_config": "quantization-transforms"}


def check_companions(raw: Mapping[str, Any], target: str, say: Say) -> Iterator[Finding]:
    """Report what compressed-tensors rejects, and what vLLM does with the rest; it reads no section that is empty."""
    for key, model in _SECTIONS.items():
        faults = faults_of(model, given) if (given := raw.get(key)) else {}
        for inner, why in faults.items():
            message = f"compressed-tensors rejects it: {why}"
            yield say(error, _FINDINGS[key], f"{key}.{inner}".rstrip("."), message, _LEAVE)
        if given and not faults:
            yield from _CHECKS[key](given, target, say)


def _check_sparsity(given: Mapping[str, Any], _: str, say: Say) -> Iterator[Finding]:
    key = "sparsity_config"
    if given.get("sparsity_structure") == "2:4" and given.get("targets"):
        yield say(error, "sparsity", key, f"is 2:4: vLLM {ENGINE_VERSION} has no kernels for it any more", _LEAVE)
    elif (stored := given["format"]) != "dense":
        message = f"names the format {stored!r}: vLLM {ENGINE_VERSION} does not read it and expects packed weights"
        yield say(warning, "sparsity", key, message, _LEAVE)


def _check_transforms(given: Mapping[str, Any], target: str, say: Say) -> Iterator[Finding]:
    """Report transforms of the inputs or outputs of layers; what is in the weights already needs nothing."""
    applied = [each for scheme in given["config_groups"].values() for each in scheme.get("apply", ())]
    if not any(each["location"] in {"input", "output"} for each in applied):
        return
    key, found = "transform_config", "rotates activations while the model runs"
    if target == "cpu":
        message = f"{found}: the CPU engine has no kernel for it"
        yield say(error, "quantization-transforms", key, message, "serve it on a GPU")
    else:
        message = f"{found}: vLLM {ENGINE_VERSION} applies it, preflight does not check it"
        yield say(warning, "quantization-transforms", key, message)


_CHECKS: Final = {"sparsity_config": _check_sparsity, "transform_config": _check_transforms}
