"""The GPUs of this host, read once through NVML into plain values."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from servekit.preflight.memory.gpu_models import GpuModel

# Reasons of nvmlDeviceGetCurrentClocksEventReasons that slow the GPU against its will (nvml.h). A software power cap is
# none of them: an L4 under load always works at its 72 W.
SLOWDOWNS: Final[Mapping[int, str]] = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


@dataclass(frozen=True)
class GpuFacts:
    """One GPU. Sizes in bytes; `reserved_bytes` is what the driver keeps, None where NVML does not say."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    reserved_bytes: int = 0
    processes: tuple[int, ...] = ()
    uncorrected_errors: int | None = None
    slowdowns: tuple[str, ...] = ()
    mig: bool = False

    @property
    def card(self) -> GpuModel:
        """The GPU as the memory plan takes it."""
        return GpuModel(self.name, self.memory_bytes, self.memory_bytes - self.reserved_bytes, self.capability)


@dataclass(frozen=True)
class GpuSurvey:
    """Every GPU NVML shows; `cuda` is the newest CUDA version the driver runs."""

    driver: str
    cuda: tuple[int, int]
    gpus: tuple[GpuFacts, ...]


SurveyGpus = Callable[[], GpuSurvey | None]


def survey_gpus() -> GpuSurvey | None:
    """Read NVML; None on a host without the library or the driver."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        gpus = tuple(_facts(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
        return GpuSurvey(pynvml.nvmlSystemGetDriverVersion(), (version // 1000, version % 1000 // 10), gpus)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def visible_gpus(survey: GpuSurvey, environ: Mapping[str, str] = os.environ) -> tuple[GpuFacts, ...]:
    """Select the GPUs CUDA would show a program with this environment.

    CUDA_VISIBLE_DEVICES holds indices or beginnings of UUIDs and ends at the first that does not exist (CUDA C++
    Programming Guide, "CUDA Environment Variables").
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return survey.gpus
    return tuple(_chosen(survey.gpus, chosen))


def _chosen(gpus: tuple[GpuFacts, ...], chosen: str) -> Iterator[GpuFacts]:
    for entry in (part.strip() for part in chosen.split(",")):
        match = [gpu for gpu in gpus if entry == str(gpu.index) or (entry[:3] == "GPU" and gpu.uuid.startswith(entry))]
        if not match:
            return
        yield match[0]


def _facts(pynvml: Any, index: int) -> GpuFacts:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    detailed = _or_none(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    processes = _or_none(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    reasons = _or_none(pynvml, pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    mig = _or_none(pynvml, pynvml.nvmlDeviceGetMigMode, handle)
    return GpuFacts(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        reserved_bytes=int(detailed.reserved) if detailed else 0,
        processes=tuple(process.pid for process in processes),
        uncorrected_errors=_or_none(
            pynvml,
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
        slowdowns=tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit),
        mig=bool(mig and mig[0]),
    )


def _or_none(pynvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the call answers; None where this GPU or this driver does not have it."""
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None
