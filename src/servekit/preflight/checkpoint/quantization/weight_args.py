"""The `weights` of a config group, read as compressed-tensors 0.15 reads them (its QuantizationArgs)."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

_FLOATS: Final = (4, 8)
_GROUPED: Final = ("group", "tensor_group")
_DYNAMIC: Final = ("token", "tensor", *_GROUPED)
_ORDERS: Final[Mapping[object, str | None]] = {
    True: "group",
    False: None,
    "dynamic": "group",
    "group": "group",
    "static": "weight",
    "weight": "weight",
}


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _no_text(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"must be a number, not {value!r}")  # noqa: TRY004 - what pydantic reports
    return value


def _order(value: object) -> object:
    value = _lower(value)
    return _ORDERS.get(value, value) if isinstance(value, str | bool) else value


_TORCH: Final = "bool|half|float|double|b?float(16|32|64)|float8_e4m3fn|float8_e5m2|short|int|long|u?int(8|16|32|64)"
Dtype = Annotated[str | None, Field(pattern=rf"^(torch\.)?({_TORCH})$")]


class WeightArgs(BaseModel, frozen=True, extra="forbid"):
    """How weights are quantized; `group_size` inputs share one scale, -1 or None: all of an output."""

    num_bits: int = 8
    type: Annotated[Literal["int", "float"], BeforeValidator(_lower)] = "int"
    symmetric: bool = True
    group_size: Annotated[int | None, Field(ge=-1), BeforeValidator(_no_text)] = None
    strategy: Annotated[
        Literal["tensor", "channel", "group", "block", "token", "tensor_group", "attn_head"] | None,
        BeforeValidator(_lower),
    ] = None
    block_structure: list[int] | str | None = None
    dynamic: Literal["local"] | bool = False
    actorder: Annotated[Literal["group", "weight"] | None, BeforeValidator(_order)] = None
    scale_dtype: Dtype = None
    zp_dtype: Dtype = None
    observer: str | None = None
    observer_kwargs: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        """The strategy, or the one that follows from the group size."""
        by_size = {None: "tensor", -1: "channel"}.get(self.group_size, "group")
        return self.strategy or by_size

    @property
    def group(self) -> int:
        """Inputs that share one scale, as vLLM's kernels count them: -1 for all."""
        return self.group_size or -1

    @property
    def has_g_idx(self) -> bool:
        """Whether vLLM loads a `weight_g_idx` beside the weights."""
        return self.actorder == "group"

    def groups(self, inputs: int) -> int:
        """Scales per output of a layer with so many inputs."""
        return 1 if self.group < 1 else inputs // self.group

    def __str__(self) -> str:
        """Describe the scheme, as in `symmetric int4 in groups of 128`."""
        by = f"in groups of {self.group_size}" if self.kind == "group" else f"by {self.kind}"
        return f"{'symmetric' if self.symmetric else 'asymmetric'} {self.type}{self.num_bits} {by}"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        size, grouped = self.group_size or 0, self.kind in _GROUPED
        unknown = self.type == "float" and self.num_bits not in _FLOATS and not self.zp_dtype
        contradictions = {
            "group_size must be positive with strategy group": grouped and size < 1,
            f"group_size {size} needs strategy group": not grouped and size > 0,
            "group_size must not be 0": self.strategy is None and self.group_size == 0,
            f"actorder needs strategy group, not {self.kind}": self.actorder is not None and not grouped,
            f"there is no float{self.num_bits}": unknown,
            "strategy token needs dynamic: true": self.kind == "token" and not self.dynamic,
            "strategy block and block_structure need each other": (self.kind == "block") != bool(self.block_structure),
            f"dynamic needs another strategy than {self.kind}": bool(self.dynamic) and self.kind not in _DYNAMIC,
            "dynamic: local needs strategy tensor_group": self.dynamic == "local" and self.kind != "tensor_group",
        }
        if found := [reason for reason, holds in contradictions.items() if holds]:
            raise ValueError("; ".join(found))
        return self


def read_weight_args(raw: object) -> tuple[WeightArgs | None, str]:
    """Return the arguments; None and the reasons if compressed-tensors rejects them."""
    try:
        return WeightArgs.model_validate(raw), ""
    except ValidationError as problem:
        return None, "; ".join(_reason(each["loc"], each["msg"]) for each in problem.errors(include_url=False))


def _reason(where: tuple[int | str, ...], message: str) -> str:
    key = str(where[0]) if where else ""
    return f"{key}: {message}".removeprefix(": ").removeprefix("Value error, ").replace(": Value error, ", ": ")
