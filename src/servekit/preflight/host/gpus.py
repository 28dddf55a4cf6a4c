"""The GPUs of this host: those that NVML can read, and those that CUDA shows to a program."""

import os
from collections.abc import Callable, Iterator, Mapping

from servekit.nvml import NVML, GpuFacts, GpuSurvey
from servekit.preflight.findings import Finding, error, warning

SurveyGpus = Callable[[], GpuSurvey | None]

survey_gpus: SurveyGpus = NVML.survey


def visible_gpus(survey: GpuSurvey, environ: Mapping[str, str] = os.environ) -> tuple[GpuFacts, ...]:
    """Select the GPUs that CUDA shows to a program with this environment.

    CUDA_VISIBLE_DEVICES holds indices or prefixes of UUIDs. CUDA stops at the first entry that does not exist (CUDA C++
    Programming Guide, "CUDA Environment Variables").
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    return survey.gpus if chosen is None else tuple(_chosen(survey.gpus, chosen))


def check_readable(survey: GpuSurvey | None) -> Iterator[Finding]:
    """Report each GPU that NVML cannot read: as an error if it can read none, otherwise as a warning."""
    report = warning if survey and survey.gpus else error
    for index, reason in survey.unreadable if survey else ():
        yield report(
            "gpu-unreadable",
            f"NVML cannot read this GPU: {reason}",
            subject=f"GPU {index}",
            remedy="look for Xid errors in the kernel log (dmesg), then reset the GPU or restart the host",
        )


def _chosen(gpus: tuple[GpuFacts, ...], chosen: str) -> Iterator[GpuFacts]:
    for entry in (part.strip() for part in chosen.split(",")):
        match = [gpu for gpu in gpus if entry == str(gpu.index) or (entry[:3] == "GPU" and gpu.uuid.startswith(entry))]
        if not match:
            return
        yield match[0]
