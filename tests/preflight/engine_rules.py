"""What vLLM 0.20.2's own functions say about schemes; runs under the engine's Python: JSON on stdin, JSON on stdout."""

import importlib
import json
import sys
from typing import Any

_LAYERS = "vllm.model_executor.layers.quantization.compressed_tensors"
ARGS: Any = importlib.import_module("compressed_tensors.quantization").QuantizationArgs
KERNELS: Any = importlib.import_module("vllm.model_executor.kernels.linear")
MATCHING: Any = importlib.import_module(f"{_LAYERS}.utils")
PACKED: Any = importlib.import_module(f"{_LAYERS}.schemes.compressed_tensors_wNa16")
MODEL: Any = importlib.import_module("vllm.model_executor.models.gemma4_mm").Gemma4ForConditionalGeneration
PLATFORMS: Any = importlib.import_module("vllm.platforms")
TORCH: Any = importlib.import_module("torch")


def main() -> None:
    """Answer every question, each list in its order."""
    asked = json.load(sys.stdin)
    answers = {
        "args": [accepts(each) for each in asked["args"]],
        "layers": [[layer(targets, ignore, *each) for each in asked["names"]] for targets, ignore in asked["lists"]],
        "kernels": [has_kernel(*each) for each in asked["kernels"]],
    }
    json.dump(answers, sys.stdout)


def accepts(raw: Any) -> bool:
    """Whether compressed-tensors takes the arguments of weights."""
    try:
        ARGS.model_validate(raw)
    except Exception:  # noqa: BLE001 - whatever it is, the start would end
        return False
    return True


def layer(targets: list[str], ignore: list[str], name: str, kind: str) -> str:
    """Return the target that a layer gets; `ignored`, `split` or `none`."""
    rename = {each: each if each.startswith("re:") or "." not in each else map_name(each) for each in targets + ignore}
    module = type(kind, (), {})()
    try:
        if MATCHING.should_ignore_layer(name, [rename[each] for each in ignore], MODEL.packed_modules_mapping):
            return "ignored"
    except ValueError:
        return "split"
    try:
        found = MATCHING.find_matched_target(
            name, module, [rename[each] for each in targets], MODEL.packed_modules_mapping
        )
    except ValueError:
        return "none"
    return next(each for each in targets if rename[each] == found)


def map_name(name: str) -> str:
    """Rename a module as vLLM does."""
    return str(MODEL.hf_to_vllm_mapper._map_name(name))


def has_kernel(raw: dict[str, Any], outputs: int, inputs: int, capability: list[int] | None, dtype: str) -> bool:
    """Whether vLLM finds a kernel for a layer of these weights, on such a GPU or on the CPU."""
    args = ARGS.model_validate(raw)
    become(capability)
    types = PACKED.WNA16_SUPPORTED_TYPES_MAP if args.symmetric else PACKED.WNA16_ZP_SUPPORTED_TYPES_MAP
    config = KERNELS.MPLinearLayerConfig(
        full_weight_shape=(inputs, outputs),
        partition_weight_shape=(inputs, outputs),
        weight_type=types[args.num_bits],
        act_type=getattr(TORCH, dtype),
        group_size=args.group_size or -1,
        zero_points=not args.symmetric,
        has_g_idx=args.actorder == "group",
    )
    try:
        KERNELS.choose_mp_linear_kernel(config)
    except ValueError:
        return False
    return True


def become(capability: list[int] | None) -> None:
    """Make vLLM believe in a GPU of this compute capability; None: in the CPU."""
    platform = PLATFORMS.current_platform
    found = PLATFORMS.interface.DeviceCapability(*capability) if capability else None
    platform._enum = PLATFORMS.PlatformEnum.CUDA if capability else PLATFORMS.PlatformEnum.CPU
    for name, value in {
        "is_cuda": bool(capability),
        "is_cuda_alike": bool(capability),
        "is_cpu": not capability,
        "get_device_capability": found,
    }.items():
        setattr(platform, name, lambda *_, value=value, **__: value)
    platform.is_device_capability = lambda wanted, **_: found is not None and found.to_int() == wanted


if __name__ == "__main__":
    main()
