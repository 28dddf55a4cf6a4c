"""The errors that GPUs report while servekit runs: Xid errors, uncorrectable ECC errors, a lost GPU."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from servekit.nvml import NVML, GpuEvent, Nvml

logger = logging.getLogger(__name__)

_BACK_OFF_S: Final = 5.0
"""NVML returns immediately for a lost GPU, so the listener waits this long before its next call."""
_KEPT: Final = 3

# NVIDIA, "Xid Errors" (docs.nvidia.com/deploy/xid-errors): those that an inference server can meet.
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


Xids = tuple[int, int | None]
"""How many Xid errors a GPU reported so far, and the number of the last one."""


class GpuErrors:
    """Records the errors of GPUs, named by UUID, on its own thread; readers take snapshots."""

    def __init__(self, gpus: Sequence[str], nvml: Nvml = NVML, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._clock = clock
        self._lock = threading.Lock()
        self._errors: deque[tuple[float, str]] = deque(maxlen=_KEPT)
        self._unnamed = gpus[0] if len(gpus) == 1 else "one of the GPUs"
        self._xids: dict[str, Xids] = dict.fromkeys(nvml.listen(gpus) if gpus else (), (0, None))

    def start(self) -> None:
        """Start the listener, unless no GPU reports Xid errors."""
        if self._xids:
            threading.Thread(target=self._listen, name="gpu-errors", daemon=True).start()

    def xids(self) -> dict[str, Xids]:
        """Return the Xid errors of each GPU that reports them, by UUID."""
        with self._lock:
            return dict(self._xids)

    def describe(self) -> str:
        """Return the last errors as part of a sentence about the engine's end; empty if there were none."""
        now_s = self._clock()
        with self._lock:
            return "; ".join(f"{text}, {now_s - at_s:.0f} s before" for at_s, text in self._errors)

    def _listen(self) -> None:
        while True:
            if event := self._nvml.next_event():
                self._record(event)
                if event.kind in {"lost", "failed"}:
                    time.sleep(_BACK_OFF_S)

    def _record(self, event: GpuEvent) -> None:
        if event.kind == "failed":
            return
        gpu = event.gpu or self._unnamed
        meaning = f" ({XIDS[event.xid]})" if event.xid in XIDS else ""
        texts = {"xid": f"Xid {event.xid}{meaning}", "ecc": "uncorrectable ECC error", "lost": "GPU is lost"}
        text = f"{texts[event.kind]} on {gpu}"
        with self._lock:
            if event.kind == "xid":
                self._xids[gpu] = (self._xids.get(gpu, (0, None))[0] + 1, event.xid)
            if self._errors and self._errors[-1][1] == text:
                return  # NVML reports a lost GPU repeatedly
            self._errors.append((self._clock(), text))
        logger.error("GPU error: %s", text)
