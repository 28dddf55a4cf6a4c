"""Which of vLLM 0.20.2's kernels can run a packed layer (model_executor/kernels/linear/mixed_precision).

vLLM chooses one for each linear layer, after it has fused q, k, v and gate, up, and ends if there is none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from servekit.preflight.checkpoint.quantization.weight_args import WeightArgs

L4: Final = (8, 9)
HOPPER: Final = (9, 0)
MARLIN_GROUPS: Final = (-1, 32, 64, 128)
_MACHETE_GROUPS: Final = (-1, 64, 128)


@dataclass(frozen=True)
class Device:
    """What the kernels run on; `capability` is a GPU's, None on the CPU."""

    capability: tuple[int, int] | None
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"a GPU of compute capability {'.'.join(map(str, self.capability))}" if self.capability else "the CPU"


def kernel_objections(args: WeightArgs, outputs: int, inputs: int, device: Device) -> list[str]:
    """Return why no kernel runs a layer [outputs, inputs] of these weights; empty: one does."""
    if args.group > 0 and inputs % args.group:
        return [f"groups of {args.group} do not divide its {inputs} inputs"]
    if device.capability is None:
        return list(_cpu(args, outputs, inputs))
    objections = list(_marlin(args, outputs, inputs))
    others = (
        _machete(args, outputs, inputs, device),
        _all_spark(args, outputs, inputs, device),
        _exllama(args, outputs, device),
    )
    return [] if any(others) else objections


def _marlin(args: WeightArgs, outputs: int, inputs: int) -> Iterator[str]:
    if args.num_bits != 4 and not args.symmetric:  # noqa: PLR2004 - uint4 is the only type with zero points
        yield f"asymmetric int{args.num_bits} (Marlin has zero points for int4 only)"
    if args.group not in MARLIN_GROUPS:
        yield f"groups of {args.group} (Marlin has {', '.join(map(str, MARLIN_GROUPS[1:]))} or one for each output)"
    if outputs % 64 or inputs % 128:
        yield f"its shape [{outputs}, {inputs}] (Marlin wants multiples of 64 and 128)"


def _cpu(args: WeightArgs, outputs: int, inputs: int) -> Iterator[str]:
    if args.num_bits != 4:  # noqa: PLR2004
        yield f"int{args.num_bits} (CPUWNA16 has int4 only)"
    if args.group > 0 and args.group % 2:
        yield f"groups of {args.group} (CPUWNA16 wants an even number)"
    if outputs % 32 or inputs % 32:
        yield f"its shape [{outputs}, {inputs}] (CPUWNA16 wants multiples of 32)"


def _machete(args: WeightArgs, outputs: int, inputs: int, device: Device) -> bool:
    return device.capability == HOPPER and args.group in _MACHETE_GROUPS and not (inputs % 64 or outputs % 128)


def _all_spark(args: WeightArgs, outputs: int, inputs: int, device: Device) -> bool:
    ampere = device.capability is not None and device.capability[0] == 8  # noqa: PLR2004 - Ada is 8.9
    fits = args.num_bits == 8 and args.symmetric and args.group == -1 and not args.has_g_idx  # noqa: PLR2004
    return ampere and fits and not (inputs % 16 or outputs % 16)


def _exllama(args: WeightArgs, outputs: int, device: Device) -> bool:
    half = device.dtype in {"float16", "half"}
    return half and args.symmetric and args.group > 0 and not outputs % (32 // args.num_bits)
