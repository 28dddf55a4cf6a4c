"""Checks one GPU against the profile: whether it is the only visible one, capable, free and healthy."""

from collections.abc import Iterator, Mapping
from typing import Final

from servekit.nvml import GpuFacts, GpuSurvey
from servekit.preflight.findings import Finding, error, warning
from servekit.preflight.host.gpus import BUS_ORDER, visible_gpus
from servekit.preflight.memory.gpu_models import GpuModel, gib
from servekit.profile import EngineArguments

FP8_CAPABILITY: Final = (8, 9)

CUDA_NEEDED: Final = (13, 0)
"""vLLM 0.20.2 is built for CUDA 13, whose oldest driver is 580 (CUDA release notes, "CUDA Driver")."""


def one_gpu(survey: GpuSurvey | None, environ: Mapping[str, str]) -> tuple[GpuFacts | None, tuple[Finding, ...]]:
    """Return the one visible GPU; None and the reason if there is not exactly one."""
    if survey is None or not survey.gpus:
        return None, (
            error(
                "gpu-missing",
                "no NVIDIA driver answers on this host" if survey is None else "the driver shows no GPU",
                remedy="install the driver, start the container with the GPU, or use target cpu",
            ),
        )
    visible = visible_gpus(survey, environ)
    order, chosen = environ.get("CUDA_DEVICE_ORDER") or BUS_ORDER, environ.get("CUDA_VISIBLE_DEVICES")
    one = f"set CUDA_VISIBLE_DEVICES={survey.gpus[0].uuid} or give the container one GPU"
    if len(survey.gpus) > 1 and order != BUS_ORDER:
        problem = f"CUDA_DEVICE_ORDER is {order!r}, and servekit numbers GPUs as nvidia-smi does", "unset it"
    elif chosen and "MIG-" in chosen:
        problem = f"CUDA_VISIBLE_DEVICES is {chosen!r}: vLLM 0.20.2 cannot be given an instance of a GPU (MIG)", one
    elif len(visible) != 1:
        setting = "CUDA_VISIBLE_DEVICES is not set" if chosen is None else f"CUDA_VISIBLE_DEVICES is {chosen!r}"
        problem = f"{len(visible)} of {len(survey.gpus)} GPUs are visible, {setting}", one
    else:
        return visible[0], ()
    return None, (error("gpu-visible", problem[0], remedy=problem[1]),)


def check_driver(survey: GpuSurvey) -> Iterator[Finding]:
    """Check the driver of all GPUs of a host."""
    if survey.cuda < CUDA_NEEDED:
        yield error(
            "gpu-driver",
            f"driver {survey.driver} runs CUDA {survey.cuda[0]}.{survey.cuda[1]}; vLLM 0.20.2 is built for CUDA 13",
            remedy="install driver 580 or newer on the host",
        )


def gpu_model(gpu: GpuFacts) -> GpuModel:
    """Convert a GPU of this host for the memory plan."""
    return GpuModel(gpu.name, gpu.memory_bytes, gpu.usable_bytes, gpu.capability)


def check_capability(gpu: GpuModel, kv_cache_dtype: str) -> Iterator[Finding]:
    """Report a GPU that does not support the FP8 KV cache that the profile sets."""
    if kv_cache_dtype.startswith("fp8") and gpu.capability and gpu.capability < FP8_CAPABILITY:
        yield error(
            "gpu-capability",
            f"compute capability {gpu.capability[0]}.{gpu.capability[1]}: an FP8 KV cache needs 8.9",
            subject=gpu.name,
            remedy="use an L4, L40S, H100 or newer, or a KV cache that is not FP8",
        )


def check_gpu(gpu: GpuFacts, survey: GpuSurvey, arguments: EngineArguments) -> list[Finding]:
    """Check one GPU and its driver against the profile."""
    share = arguments.gpu_memory_utilization
    claimed = share * gpu.usable_bytes
    checks = (
        # vLLM 0.20.2 compares the two whatever the size of the KV cache: v1/worker/utils.py, request_memory
        (
            gpu.free_bytes < claimed,
            error(
                "gpu-memory",
                f"{gib(gpu.free_bytes)} are free, gpu-memory-utilization {share} claims {gib(claimed)}: "
                "vLLM rejects that",
                subject=gpu.name,
                remedy="stop what uses the GPU, or lower gpu-memory-utilization",
            ),
        ),
        (
            gpu.processes,
            warning(
                "gpu-processes",
                f"used by {len(gpu.processes)} other processes (pid {', '.join(map(str, gpu.processes))})",
                subject=gpu.name,
                remedy="stop them: the endpoint needs the GPU for itself",
            ),
        ),
        (
            gpu.mig,
            warning(
                "gpu-mig",
                "MIG is on: a program can use only an instance of the GPU, whose memory is not the planned one",
                subject=gpu.name,
                remedy="turn MIG off for a dedicated endpoint",
            ),
        ),
        (
            gpu.uncorrected_errors,
            error(
                "gpu-ecc",
                f"{gpu.uncorrected_errors} uncorrected memory errors since the driver was loaded",
                subject=gpu.name,
                remedy="reset the GPU or replace it",
            ),
        ),
        (
            gpu.slowdowns,
            warning(
                "gpu-throttled",
                f"slowed down by {', '.join(gpu.slowdowns)}",
                subject=gpu.name,
                remedy="check cooling and power supply",
            ),
        ),
    )
    return [*check_driver(survey), *(finding for found, finding in checks if found)]
