"""What NVML reports of a GPU's errors: Xid and ECC as events, and their counts. A narrow seam; tests put a fake behind.

NVML that is not there, or does not say, is an absent value and never an error of servekit's.
"""

import importlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

logger = logging.getLogger(__name__)

_SINGLE_BIT: Final = 0x1
_DOUBLE_BIT: Final = 0x2
_XID: Final = 0x8
_LOST_CODE: Final = 15
"""nvmlEventTypeSingleBitEccError, nvmlEventTypeDoubleBitEccError, nvmlEventTypeXidCriticalError; NVML_ERROR_GPU_IS_LOST
(nvml.h)."""
_CORRECTED: Final = 0
_UNCORRECTED: Final = 1
_VOLATILE: Final = 0
"""NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC (nvml.h)."""
_WAIT_MS: Final = 1000
_BACK_OFF_S: Final = 5.0
_KEPT: Final = 20

# NVIDIA, "Xid Errors" (docs.nvidia.com/deploy/xid-errors): those a served model meets.
XIDS: Final = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "GPU stopped processing",
    45: "preemptive clean-up after another error",
    48: "double bit ECC error",
    62: "internal micro-controller halt",
    63: "row remapping or page retirement recorded",
    64: "row remapping or page retirement failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high rate of single bit ECC errors",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP RPC time-out",
    120: "GSP error",
    154: "GPU recovery action changed",
}


@dataclass(frozen=True)
class GpuError:
    """One error a GPU reported, `at_s` by the monotonic clock; `xid` is None for an ECC error and a lost GPU."""

    at_s: float
    gpu: str
    what: str
    xid: int | None = None


@dataclass(frozen=True)
class ErrorCounts:
    """What one GPU counts itself; None where it does not."""

    ecc: tuple[int | None, int | None]
    """Corrected and uncorrected ECC errors since the driver was loaded."""
    remapped: tuple[int, int, bool, bool] | None
    """Rows remapped for corrected and for uncorrected errors; whether one is pending, whether one has failed."""


class GpuErrors:
    """Listens for the errors of GPUs, named by UUID, on a thread; readers take snapshots."""

    def __init__(self, gpus: Sequence[str], nvml: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._errors: list[GpuError] = []
        self._xids: dict[str, tuple[int, int | None]] = {}
        self._nvml = nvml
        self._events: Any = None
        if gpus:
            self._register(gpus)

    def start(self) -> None:
        """Begin to listen; does nothing where no GPU has events."""
        if self._xids:
            threading.Thread(target=self._listen, name="gpu-errors", daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        self._over.set()

    def xids(self) -> dict[str, tuple[int, int | None]]:
        """Return for each GPU that has events, by its UUID, the number of its Xids so far and the last one."""
        with self._lock:
            return dict(self._xids)

    def describe(self) -> str:
        """Return the last errors as part of a sentence about the engine's end; empty when there were none."""
        now_s = self._clock()
        with self._lock:
            return "; ".join(
                f"{each.what} on {each.gpu}, {now_s - each.at_s:.0f} s before" for each in self._errors[-3:]
            )

    def counts(self, gpu: str) -> ErrorCounts:
        """Read a GPU's own counters."""
        handle = self._ask("nvmlDeviceGetHandleByUUID", gpu)
        if handle is None:
            return ErrorCounts((None, None), None)
        corrected, uncorrected = (
            self._ask("nvmlDeviceGetTotalEccErrors", handle, kind, _VOLATILE) for kind in (_CORRECTED, _UNCORRECTED)
        )
        rows = self._ask("nvmlDeviceGetRemappedRows", handle)
        remapped = (rows[0], rows[1], bool(rows[2]), bool(rows[3])) if rows else None
        return ErrorCounts((corrected, uncorrected), remapped)

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments) if self._nvml else None
        except self._nvml.NVMLError:
            return None

    def _register(self, gpus: Sequence[str]) -> None:
        try:
            self._nvml = self._nvml or importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._events = self._nvml.nvmlEventSetCreate()
        except Exception:  # noqa: BLE001 - no library, no driver, another driver: nothing is reported
            return
        for gpu in gpus:
            try:
                handle = self._nvml.nvmlDeviceGetHandleByUUID(gpu)
                wanted = (_XID | _DOUBLE_BIT | _SINGLE_BIT) & self._nvml.nvmlDeviceGetSupportedEventTypes(handle)
                self._nvml.nvmlDeviceRegisterEvents(handle, wanted, self._events)
                if wanted & _XID:
                    self._xids[gpu] = (0, None)
            except self._nvml.NVMLError:
                continue

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, _WAIT_MS)
                gpu = self._nvml.nvmlDeviceGetUUID(event.device)
            except self._nvml.NVMLError_Timeout:
                continue
            except self._nvml.NVMLError as error:
                if getattr(error, "value", None) == _LOST_CODE:
                    self._add(GpuError(self._clock(), "one of its cards", "GPU is lost"))
                self._over.wait(_BACK_OFF_S)
                continue
            self._take(gpu, event.eventType, event.eventData)

    def _take(self, gpu: str, kind: int, data: int) -> None:
        if kind == _XID:
            with self._lock:
                self._xids[gpu] = (self._xids.get(gpu, (0, None))[0] + 1, data)
            name = f" ({XIDS[data]})" if data in XIDS else ""
            self._add(GpuError(self._clock(), gpu, f"Xid {data}{name}", data))
        elif kind == _DOUBLE_BIT:
            self._add(GpuError(self._clock(), gpu, "uncorrectable ECC error"))
        # A corrected error ends nothing; the ECC metrics count it.

    def _add(self, error: GpuError) -> None:
        with self._lock:
            if self._errors and (self._errors[-1].gpu, self._errors[-1].what) == (error.gpu, error.what):
                return  # a lost GPU says so each time
            self._errors = [*self._errors, error][-_KEPT:]
        logger.error("the GPU reports: %s on %s", error.what, error.gpu)
