"""The GPUs of this host: those that NVML can read, and those that CUDA shows to a program."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from servekit.nvml import NVML, GpuFacts, GpuSurvey
from servekit.preflight.findings import Finding, error, warning

SurveyGpus = Callable[[], GpuSurvey | None]

survey_gpus: SurveyGpus = NVML.survey
BUS_ORDER: Final = "PCI_BUS_ID"
"""The CUDA_DEVICE_ORDER that is NVML's, and that of `nvidia-smi`."""
_NUMBER: Final = re.compile(r"\s*([+-]?\d+)")


def visible_gpus(survey: GpuSurvey, environ: Mapping[str, str] = os.environ) -> tuple[GpuFacts, ...]:
    """Select the GPUs that CUDA would show to a program with this environment, in the order of NVML.

    CUDA_VISIBLE_DEVICES holds numbers, of which CUDA reads the leading digits, or prefixes of UUIDs. The list ends at
    the first entry that names no GPU, or is not of the first one's kind; a GPU named twice is an error. Seen with two
    H200 and CUDA 13.0.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    return survey.gpus if chosen is None else _chosen(survey.gpus, chosen.split(","))


def pinned(survey: GpuSurvey | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which the engine uses the GPU that preflight has looked at.

    CUDA numbers the fastest GPU first unless CUDA_DEVICE_ORDER says otherwise, NVML in the order of the bus. vLLM
    0.20.2 looks up a GPU in NVML by its number for CUDA, and takes no UUID (platforms/interface.py,
    device_id_to_physical_device_id).
    """
    visible = visible_gpus(survey, environ) if survey else ()
    chosen = {"CUDA_VISIBLE_DEVICES": str(visible[0].index)} if len(visible) == 1 else {}
    return {"CUDA_DEVICE_ORDER": BUS_ORDER} | chosen


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


def _chosen(gpus: tuple[GpuFacts, ...], entries: list[str]) -> tuple[GpuFacts, ...]:
    numbered, found = bool(_NUMBER.match(entries[0])), list[GpuFacts]()
    for entry in entries:
        if number := _NUMBER.match(entry):
            match = [gpu for gpu in gpus if gpu.index == int(number[1])]
        else:
            prefix = entry.rstrip().lower() if entry.startswith("GPU-") else "not a UUID"
            match = [gpu for gpu in gpus if gpu.uuid.lower().startswith(prefix)]
        if bool(number) != numbered or len(match) != 1:
            break
        if match[0] in found:
            return ()
        found += match
    return tuple(found)
