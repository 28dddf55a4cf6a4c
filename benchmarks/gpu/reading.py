"""GPU 0 as servekit's NVML reads it: memory in use, its processes, energy. None on a host without a GPU."""

import functools
import threading
import time
from collections.abc import Callable

from servekit.measure.figures.energy import Sample, count_energy, integrate_power
from servekit.nvml import NVML, GpuFacts

GIB = 1 << 30
INTERVAL_S = 0.1


def read_gpu() -> GpuFacts | None:
    """Read GPU 0; None if there is none."""
    survey = NVML.survey()
    return survey.gpus[0] if survey and survey.gpus else None


class EnergyMeter:
    """Reads a GPU ten times a second on a thread until it is stopped."""

    def __init__(self, read: Callable[[], tuple[float, float] | None], interval_s: float = INTERVAL_S) -> None:
        """Read joules and watts with `read`, which returns None where there is nothing to read."""
        self.samples: list[Sample] = []
        """By time.perf_counter."""
        self._read, self._interval_s = read, interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._over.set()
        self._thread.join()

    def between(self, start_s: float, end_s: float) -> dict[str, float]:
        """Return joules and mean watts between two seconds of time.perf_counter; nothing without readings."""
        counted = count_energy(self.samples, start_s, end_s)
        traced = integrate_power(self.samples, start_s, end_s, self._interval_s)
        if counted.joules is None or traced.joules is None:
            return {}
        return {
            "energy_j": round(counted.joules, 1),
            "energy_error_j": round(counted.error_j, 1),
            "mean_power_w": round(counted.joules / (end_s - start_s), 1),
            "mean_power_of_trace_w": round(traced.joules / (end_s - start_s), 1),
            "power_samples": sum(start_s <= sample.t <= end_s for sample in self.samples),
        }

    def _run(self) -> None:
        while not self._over.wait(self._interval_s):
            reading = self._read()
            if reading is None:
                return
            self.samples.append(Sample(time.perf_counter(), *reading))


def read_energy() -> tuple[float, float] | None:
    """Return the joules that GPU 0 has used since the driver was loaded, and its watts; None if it reports none."""
    uuid = _uuid()
    readings = NVML.read(uuid, ("energy_j", "power_w", "power_instant_w")) if uuid else None
    if readings is None or readings.energy_j is None or readings.power_w is None:
        return None
    return readings.energy_j, readings.power_w if readings.power_instant_w is None else readings.power_instant_w


def used_bytes() -> int:
    """Return the bytes of GPU memory in use by any process; 0 if there is no GPU."""
    gpu = read_gpu()
    return gpu.memory_bytes - gpu.free_bytes if gpu else 0


@functools.cache
def _uuid() -> str | None:
    gpu = read_gpu()
    return gpu.uuid if gpu else None
