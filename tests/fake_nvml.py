"""NVML with as many L4 GPUs as a test needs: pynvml's own names, signatures and exceptions, without a driver."""

import importlib
import inspect
import queue
import threading
from types import SimpleNamespace
from typing import Any

pynvml: Any = importlib.import_module("pynvml")

MIB = 1 << 20
XID, DOUBLE_BIT = pynvml.nvmlEventTypeXidCriticalError, pynvml.nvmlEventTypeDoubleBitEccError
GPU = "GPU-1234"

_ANSWERS: dict[str, Any] = {
    "nvmlInit": None,
    "nvmlSystemGetCudaDriverVersion_v2": 13_000,
    "nvmlSystemGetDriverVersion": "580.95.05",
    "nvmlDeviceGetName": "NVIDIA L4",
    "nvmlDeviceGetCudaComputeCapability": (8, 9),
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7, usedGpuMemory=4096)],
    "nvmlDeviceGetCurrentClocksEventReasons": 0x44,
    "nvmlDeviceGetTotalEnergyConsumption": 81_234_567,
    "nvmlDeviceGetPowerUsage": 71_500,
    "nvmlDeviceGetEnforcedPowerLimit": 72_000,
    "nvmlDeviceGetTemperature": 64,
    "nvmlDeviceGetTotalEccErrors": 5,
    "nvmlDeviceGetRemappedRows": (1, 2, 1, 0),
    "nvmlEventSetCreate": "set",
    "nvmlDeviceGetSupportedEventTypes": 0xFF,
}


class FakeNvml:
    """A fake of the module pynvml: `failures` maps each function that fails to the code of its NVMLError.

    A GPU's handle is its index. Every query of a `lost` GPU fails.
    """

    NVMLError = pynvml.NVMLError

    def __init__(self, *unsupported: str, count: int = 1, **failures: int) -> None:
        self.failures = dict.fromkeys(unsupported, pynvml.NVML_ERROR_NOT_SUPPORTED) | failures
        self.count = count
        self.lost: set[object] = set()
        self.calls: list[str] = []
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.registered: list[tuple[object, int]] = []
        self.waiting = threading.Event()

    def happen(self, kind: int, data: int = 0) -> None:
        """Make the next wait return an event."""
        self.events.put(SimpleNamespace(device=0, eventType=kind, eventData=data))

    def __getattr__(self, name: str) -> Any:
        signature = inspect.signature(getattr(pynvml, name))

        def call(*arguments: Any) -> Any:
            signature.bind(*arguments)
            self.calls.append(name)
            if name in self.failures:
                raise pynvml.NVMLError(self.failures[name])
            if arguments and arguments[0] in self.lost:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            own = getattr(self, f"_{name}") if hasattr(type(self), f"_{name}") else None
            return own(*arguments) if own else _ANSWERS[name]

        return call

    def _nvmlDeviceGetCount(self) -> int:  # noqa: N802 - the library's names, here and below
        return self.count

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def _nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return 0 if uuid == GPU else int(uuid.rpartition("-")[2])

    def _nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return GPU if handle == 0 else f"GPU-{handle}"

    def _nvmlDeviceGetMemoryInfo(self, _handle: int, version: int | None = None) -> Any:  # noqa: N802
        reserve = {"reserved": 470 * MIB} if version == pynvml.nvmlMemory_v2 else {}
        return SimpleNamespace(total=23_034 * MIB, free=22_500 * MIB, used=534 * MIB, **reserve)

    def _nvmlDeviceGetClockInfo(self, _handle: int, kind: int) -> int:  # noqa: N802
        return {pynvml.NVML_CLOCK_SM: 1_350, pynvml.NVML_CLOCK_MEM: 6_251}[kind]

    def _nvmlDeviceGetFieldValues(self, _handle: int, fields: list[int]) -> list[Any]:  # noqa: N802
        assert fields == [pynvml.NVML_FI_DEV_POWER_INSTANT]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=70_900))]

    def _nvmlDeviceGetMigMode(self, _handle: int) -> list[int]:  # noqa: N802
        return [0, 0]

    def _nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: object) -> None:  # noqa: N802
        assert events == "set"
        self.registered.append((handle, kinds))

    def _nvmlEventSetWait_v2(self, events: object, _timeout_ms: int) -> Any:  # noqa: N802
        assert events == "set"
        self.waiting.set()
        try:
            event = self.events.get(timeout=0.02)
        except queue.Empty:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT) from None
        if isinstance(event, Exception):
            raise event
        return event
