"""One GPU against the profile: whether it is alone, able, free and healthy."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from servekit.nvml import GpuFacts, GpuSurvey
from servekit.preflight.findings import Finding, error, warning
from servekit.preflight.host.gpus import visible_gpus
from servekit.preflight.memory.gpu_models import GIB
from servekit.preflight.memory.memory_plan import DEFAULT_UTILIZATION
from servekit.preflight.memory.memory_report import FP8_CAPABILITY

CUDA_NEEDED: Final = (13, 0)
"""vLLM 0.20.2 is built for CUDA 13, whose oldest driver is 580 (CUDA release notes, "CUDA Driver")."""


def one_gpu(survey: GpuSurvey | None, environ: Mapping[str, str]) -> tuple[GpuFacts | None, tuple[Finding, ...]]:
    """Return the one visible GPU, or None and why there is not exactly one."""
    if survey is None or not survey.gpus:
        missing = error(
            "gpu-missing",
            "no NVIDIA driver answers on this host" if survey is None else "the driver shows no GPU",
            remedy="install the driver, start the container with the GPU, or use target cpu",
        )
        return None, (missing,)
    visible = visible_gpus(survey, environ)
    if len(visible) == 1:
        return visible[0], ()
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    setting = "CUDA_VISIBLE_DEVICES is not set" if chosen is None else f"CUDA_VISIBLE_DEVICES is {chosen!r}"
    wrong = error(
        "gpu-visible",
        f"{len(visible)} of {len(survey.gpus)} GPUs are visible, {setting}",
        remedy=f"set CUDA_VISIBLE_DEVICES={survey.gpus[0].uuid} or give the container one GPU",
    )
    return None, (wrong,)


def check_driver(survey: GpuSurvey) -> Iterator[Finding]:
    """Judge the driver of all GPUs of a host."""
    if survey.cuda < CUDA_NEEDED:
        yield error(
            "gpu-driver",
            f"driver {survey.driver} runs CUDA {survey.cuda[0]}.{survey.cuda[1]}; vLLM 0.20.2 is built for CUDA 13",
            remedy="install driver 580 or newer on the host",
        )


def check_gpu(gpu: GpuFacts, survey: GpuSurvey, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge one GPU against the profile."""
    if gpu.capability < FP8_CAPABILITY:
        yield error(
            "gpu-capability",
            f"compute capability {gpu.capability[0]}.{gpu.capability[1]}, FP8 needs 8.9",
            subject=gpu.name,
            remedy="take an L4, L40S, H100 or newer",
        )
    yield from check_driver(survey)
    yield from _check_gpu_memory(gpu, arguments)
    if gpu.mig:
        yield warning(
            "gpu-mig",
            "MIG is on: only an instance of the GPU can be used, its memory is not the one planned with",
            subject=gpu.name,
            remedy="turn MIG off for a dedicated endpoint",
        )
    if gpu.uncorrected_errors:
        yield error(
            "gpu-ecc",
            f"{gpu.uncorrected_errors} uncorrected memory errors since the driver was loaded",
            subject=gpu.name,
            remedy="reset the GPU or replace it",
        )
    if gpu.slowdowns:
        yield warning(
            "gpu-throttled",
            f"slowed down by {', '.join(gpu.slowdowns)}",
            subject=gpu.name,
            remedy="look after cooling and power supply",
        )


def _check_gpu_memory(gpu: GpuFacts, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    share = float(arguments.get("gpu-memory-utilization") or DEFAULT_UTILIZATION)
    wanted = share * gpu.usable_bytes
    if gpu.free_bytes < wanted and not arguments.get("kv-cache-memory-bytes"):
        yield error(
            "gpu-memory",
            f"{_gib(gpu.free_bytes)} are free, gpu-memory-utilization {share} claims {_gib(wanted)}: vLLM refuses",
            subject=gpu.name,
            remedy="end what uses the GPU, or lower gpu-memory-utilization",
        )
    if gpu.processes:
        yield warning(
            "gpu-processes",
            f"used by {len(gpu.processes)} other processes (pid {', '.join(map(str, gpu.processes))})",
            subject=gpu.name,
            remedy="end them: the endpoint is meant to have the GPU alone",
        )


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"
