"""FP8 activations for the 4-bit layers: a named deviation of accuracy, off by default."""

from collections.abc import Iterator, Mapping
from typing import Final

from servekit.preflight.findings import Finding, error, warning
from servekit.preflight.memory.gpu_models import GpuModel
from servekit.profile import Deviation
from servekit.settings import Target

DEVIATION: Final = Deviation(
    key="activations",
    wanted="bfloat16",
    used="float8_e4m3fn",
    reason="--fp8-activations: faster on this GPU, and nobody has measured what it costs in accuracy",
)
VARIABLES: Final[Mapping[str, str]] = {"VLLM_MARLIN_INPUT_DTYPE": "fp8"}
CAPABILITIES: Final = frozenset({(8, 9), (12, 0)})
"""The GPUs whose kernel for 4-bit weights takes FP8 activations: vLLM 0.20.2, quantization/utils/marlin_utils.py,
get_marlin_input_dtype."""


def check_activations(target: Target, gpu: GpuModel | None, quantization: str | None) -> Iterator[Finding]:
    """Report what keeps an engine from FP8 activations, or that their accuracy is unknown."""
    capability = gpu.capability if gpu else None
    if target is Target.CPU:
        why = "the CPU engine has none"
    elif quantization != "compressed-tensors":
        why = f"only 4-bit layers have them, and the profile's quantization is {quantization or 'not set'}"
    elif capability and capability not in CAPABILITIES:
        why = f"compute capability {capability[0]}.{capability[1]}: vLLM has them for 8.9 (L4, L40S) and 12.0"
    else:
        unknown = "their accuracy is not measured: docs/memory.md has what to run"
        yield warning("fp8-activations", unknown, subject="--fp8-activations")
        return
    yield error("fp8-activations", why, subject="--fp8-activations", remedy="leave it out")
