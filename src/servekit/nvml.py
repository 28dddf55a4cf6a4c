"""NVML as plain values: the only module that touches pynvml.

A GPU, a driver or a container may lack any of NVML's functions, and a GPU can fail between two calls. What NVML does
not return is None here, and the survey lists each GPU that it cannot read. No NVMLError leaves this module.
"""

import functools
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

# Reasons of nvmlDeviceGetCurrentClocksEventReasons that throttle the GPU (nvml.h). A software power cap is not one: an
# L4 under load always runs at its limit of 72 W.
SLOWDOWNS: Final[Mapping[int, str]] = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}

CONSTANTS: Final[Mapping[str, int]] = {
    "NVML_CLOCK_MEM": 2,
    "NVML_CLOCK_SM": 1,
    "NVML_ERROR_GPU_IS_LOST": 15,
    "NVML_ERROR_TIMEOUT": 10,
    "NVML_FI_DEV_POWER_INSTANT": 186,
    "NVML_MEMORY_ERROR_TYPE_CORRECTED": 0,
    "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1,
    "NVML_TEMPERATURE_GPU": 0,
    "NVML_VOLATILE_ECC": 0,
    "nvmlEventTypeDoubleBitEccError": 0x2,
    "nvmlEventTypeXidCriticalError": 0x8,
    "nvmlMemory_v2": 0x02000028,
}
"""The constants of nvml.h that this module passes: pynvml may be absent. A test compares them with pynvml's."""

_WAIT_MS: Final = 1000


@dataclass(frozen=True)
class GpuFacts:
    """What identifies a GPU, and its condition at the survey. Sizes in bytes."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    reserved_bytes: int = 0
    """What the driver keeps for itself; 0 where NVML does not report it."""
    processes: Mapping[int, int] = field(default_factory=dict)
    """The bytes that each process holds, by process id; 0 where NVML does not report them."""
    uncorrected_errors: int | None = None
    slowdowns: tuple[str, ...] = ()
    mig: bool = False

    @property
    def usable_bytes(self) -> int:
        """The memory that CUDA offers to a program."""
        return self.memory_bytes - self.reserved_bytes


@dataclass(frozen=True)
class GpuSurvey:
    """Every GPU of the host; `cuda` is the newest CUDA version that the driver supports."""

    driver: str
    cuda: tuple[int, int]
    gpus: tuple[GpuFacts, ...]
    unreadable: tuple[tuple[int, str], ...] = ()
    """The index of each GPU that NVML counts but cannot read, with NVML's reason."""


@dataclass(frozen=True)
class GpuReadings:
    """The values of one GPU at one moment; None where NVML does not report one."""

    energy_j: float | None = None
    """Since the driver was loaded."""
    power_w: float | None = None
    """The mean of about the last second."""
    power_instant_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    slowdowns: tuple[str, ...] | None = None
    corrected_errors: int | None = None
    uncorrected_errors: int | None = None
    """ECC errors since the driver was loaded."""
    remapped_rows: tuple[int, int, bool, bool] | None = None
    """Rows remapped for corrected and for uncorrected errors; whether a remapping is pending, whether one failed."""


@dataclass(frozen=True)
class GpuEvent:
    """An error that a GPU reported, or (`lost`, `failed`) what NVML reported in its place."""

    kind: Literal["xid", "ecc", "lost", "failed"]
    gpu: str | None = None
    """Its UUID; None where NVML no longer reports it."""
    xid: int = 0


def _thousandth(value: float) -> float:
    return value / 1000


def _instant_power(answers: Sequence[Any]) -> float | None:
    """Return the watts of the one field asked for; NVML reports success or failure for each field."""
    return answers[0].value.uiVal / 1000 if answers[0].nvmlReturn == 0 else None


def _slowdowns(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in SLOWDOWNS.items() if bits & bit)


_READINGS: Final[Mapping[str, tuple[str, Sequence[Any], Callable[[Any], Any]]]] = {
    "energy_j": ("nvmlDeviceGetTotalEnergyConsumption", (), _thousandth),
    "power_w": ("nvmlDeviceGetPowerUsage", (), _thousandth),
    "power_instant_w": ("nvmlDeviceGetFieldValues", [[CONSTANTS["NVML_FI_DEV_POWER_INSTANT"]]], _instant_power),
    "power_limit_w": ("nvmlDeviceGetEnforcedPowerLimit", (), _thousandth),
    "temperature_c": ("nvmlDeviceGetTemperature", [CONSTANTS["NVML_TEMPERATURE_GPU"]], float),
    "sm_clock_mhz": ("nvmlDeviceGetClockInfo", [CONSTANTS["NVML_CLOCK_SM"]], int),
    "memory_clock_mhz": ("nvmlDeviceGetClockInfo", [CONSTANTS["NVML_CLOCK_MEM"]], int),
    "memory_used_bytes": ("nvmlDeviceGetMemoryInfo", (), lambda memory: int(memory.used)),
    "memory_total_bytes": ("nvmlDeviceGetMemoryInfo", (), lambda memory: int(memory.total)),
    "slowdowns": ("nvmlDeviceGetCurrentClocksEventReasons", (), _slowdowns),
    "corrected_errors": (
        "nvmlDeviceGetTotalEccErrors",
        [CONSTANTS["NVML_MEMORY_ERROR_TYPE_CORRECTED"], CONSTANTS["NVML_VOLATILE_ECC"]],
        int,
    ),
    "uncorrected_errors": (
        "nvmlDeviceGetTotalEccErrors",
        [CONSTANTS["NVML_MEMORY_ERROR_TYPE_UNCORRECTED"], CONSTANTS["NVML_VOLATILE_ECC"]],
        int,
    ),
    "remapped_rows": (
        "nvmlDeviceGetRemappedRows",
        (),
        lambda rows: (rows[0], rows[1], bool(rows[2]), bool(rows[3])),
    ),
}
"""For each field of GpuReadings: NVML's function, its arguments after the handle, and how to convert its answer."""


class Nvml:
    """The NVML library, initialised at the first query and never shut down: other threads may still query it."""

    def __init__(self, library: Any = None) -> None:
        """Use `library` in place of pynvml."""
        self._given = library
        self._events: Any = None

    def survey(self) -> GpuSurvey | None:
        """Return the GPUs of this host; None without the library or the driver."""
        if self._library is None:
            return None
        version = self._query("nvmlSystemGetCudaDriverVersion_v2") or 0
        gpus, unreadable = [], []
        for index in range(self._query("nvmlDeviceGetCount") or 0):
            try:
                gpus.append(self._identify(index))
            except self._failures as error:
                unreadable.append((index, str(error)))
        return GpuSurvey(
            driver=self._query("nvmlSystemGetDriverVersion") or "unknown",
            cuda=(version // 1000, version % 1000 // 10),
            gpus=tuple(gpus),
            unreadable=tuple(unreadable),
        )

    def read(self, gpu: str, fields: Collection[str] = _READINGS) -> GpuReadings:
        """Read the values of a GPU, named by UUID: all of them, or these `fields` of GpuReadings alone."""
        handle = self._query("nvmlDeviceGetHandleByUUID", gpu)
        if handle is None:
            return GpuReadings()
        calls = {field: _READINGS[field][:2] for field in fields}
        answers = {field: self._query(function, handle, *rest) for field, (function, rest) in calls.items()}
        known = {field: answer for field, answer in answers.items() if answer is not None}
        return GpuReadings(**{field: _READINGS[field][2](answer) for field, answer in known.items()})

    def processes(self, gpu: str) -> dict[int, int] | None:
        """Return the bytes that each compute process holds on a GPU, named by UUID; None where NVML reports none."""
        handle = self._query("nvmlDeviceGetHandleByUUID", gpu)
        return None if handle is None else self._processes(handle)

    def listen(self, gpus: Sequence[str]) -> tuple[str, ...]:
        """Register for the errors of these GPUs, named by UUID; return those that report Xid errors."""
        self._events = self._query("nvmlEventSetCreate")
        return tuple(gpu for gpu in gpus if self._events is not None and self._register(gpu))

    def next_event(self) -> GpuEvent | None:
        """Wait up to a second for the next event of the GPUs listened to; return None if there was none."""
        try:
            event = self._call("nvmlEventSetWait_v2", self._events, _WAIT_MS)
        except self._failures as error:
            code = getattr(error, "value", None)
            if code == CONSTANTS["NVML_ERROR_TIMEOUT"]:
                return None
            return GpuEvent("lost" if code == CONSTANTS["NVML_ERROR_GPU_IS_LOST"] else "failed")
        is_xid = event.eventType == CONSTANTS["nvmlEventTypeXidCriticalError"]
        uuid = self._query("nvmlDeviceGetUUID", event.device)
        return GpuEvent("xid", uuid, int(event.eventData)) if is_xid else GpuEvent("ecc", uuid)

    @functools.cached_property
    def _library(self) -> Any:
        try:
            library = self._given or importlib.import_module("pynvml")
            library.nvmlInit()
        except Exception:  # noqa: BLE001 - no library, no driver, or a driver of another version: no NVML
            return None
        return library

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """What a call may raise: NVML's own errors; AttributeError where pynvml is absent or lacks the function."""
        return (AttributeError, getattr(self._library, "NVMLError", AttributeError))

    def _call(self, function: str, *arguments: Any) -> Any:
        return getattr(self._library, function)(*arguments)

    def _query(self, function: str, *arguments: Any) -> Any:
        """Return NVML's answer; None if this library, driver or GPU has none."""
        try:
            return self._call(function, *arguments)
        except self._failures:
            return None

    def _identify(self, index: int) -> GpuFacts:
        """Read a GPU; raise one of `_failures` where NVML does not report what every GPU has."""
        handle = self._call("nvmlDeviceGetHandleByIndex", index)
        uuid = self._call("nvmlDeviceGetUUID", handle)
        memory = self._call("nvmlDeviceGetMemoryInfo", handle)
        detailed = self._query("nvmlDeviceGetMemoryInfo", handle, CONSTANTS["nvmlMemory_v2"])
        mig = self._query("nvmlDeviceGetMigMode", handle)
        readings = self.read(uuid)
        return GpuFacts(
            index=index,
            uuid=uuid,
            name=self._call("nvmlDeviceGetName", handle),
            memory_bytes=int(memory.total),
            free_bytes=int(memory.free),
            capability=tuple(self._call("nvmlDeviceGetCudaComputeCapability", handle)),
            reserved_bytes=int(detailed.reserved) if detailed else 0,
            processes=self._processes(handle) or {},
            uncorrected_errors=readings.uncorrected_errors,
            slowdowns=readings.slowdowns or (),
            mig=bool(mig and mig[0]),
        )

    def _processes(self, handle: Any) -> dict[int, int] | None:
        running = self._query("nvmlDeviceGetComputeRunningProcesses", handle)
        return None if running is None else {each.pid: each.usedGpuMemory or 0 for each in running}

    def _register(self, gpu: str) -> bool:
        xid = CONSTANTS["nvmlEventTypeXidCriticalError"]
        try:
            handle = self._call("nvmlDeviceGetHandleByUUID", gpu)
            supported = self._call("nvmlDeviceGetSupportedEventTypes", handle)
            # Corrected ECC errors are left out: they stop nothing, and NVML counts them.
            kinds = supported & (xid | CONSTANTS["nvmlEventTypeDoubleBitEccError"])
            self._call("nvmlDeviceRegisterEvents", handle, kinds, self._events)
        except self._failures:
            return False
        return bool(kinds & xid)


NVML: Final = Nvml()
"""The one instance that servekit shares, so that NVML is initialised once."""
