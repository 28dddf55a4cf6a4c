"""The threads that fill the trace: readings of the GPUs, and scrapes of the endpoint's metrics page."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

import urllib3

from servekit.measure.trace import Page, TraceWriter, parse_page
from servekit.nvml import NVML, Nvml

INTERVAL_S: Final = 0.1
SCRAPE_S: Final = 1.0
_FIELDS: Final = (
    *("energy_j", "power_w", "power_instant_w", "power_limit_w"),
    *("temperature_c", "sm_clock_mhz", "memory_clock_mhz", "slowdowns"),
)
_PROCESSES_EVERY: Final = 10
"""Readings between two looks at the processes: NVML takes longer for those."""
_TIMEOUT_S: Final = 10.0


class Ticker:
    """A thread that calls a function again and again, at fixed moments, until the block ends."""

    def __init__(self, name: str, interval_s: float, tick: Callable[[], object]) -> None:
        self._interval_s, self._tick = interval_s, tick
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, once the call that runs has returned."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        next_s = time.monotonic()
        while not self._over.is_set():
            self._tick()
            # A late call is not made up for: the next one comes at the next of the fixed moments.
            missed = max(0.0, (time.monotonic() - next_s) // self._interval_s)
            next_s += (missed + 1) * self._interval_s
            self._over.wait(max(0.0, next_s - time.monotonic()))


class GpuReader:
    """Writes the readings of the endpoint's GPUs and the foreign processes on them."""

    def __init__(
        self, gpus: Sequence[str], trace: TraceWriter, is_own: Callable[[int], bool], nvml: Nvml = NVML
    ) -> None:
        """Read the GPUs with these UUIDs; `is_own` tells whether a process id is one of the endpoint's."""
        self._gpus, self._trace, self._is_own, self._nvml = gpus, trace, is_own, nvml
        self._readings = 0
        self._others: dict[str, Mapping[int, int]] = {}
        self.energy_j: float | None = None
        """The counters of all GPUs together at the last reading, for the progress line."""
        self.temperature_c: float | None = None
        """That of the hottest GPU at the last reading."""

    def read(self) -> None:
        """Write one reading of each GPU."""
        energies: list[float | None] = []
        temperatures: list[float] = []
        for gpu in self._gpus:
            readings = asdict(self._nvml.read(gpu, _FIELDS))
            known = {name: readings[name] for name in _FIELDS if readings[name] is not None}
            self._trace.write("gpu", gpu=gpu, **known)
            energies.append(known.get("energy_j"))
            temperatures += [known["temperature_c"]] if "temperature_c" in known else []
            if self._readings % _PROCESSES_EVERY == 0:
                self._read_processes(gpu)
        self._readings += 1
        self.temperature_c = max(temperatures, default=None)
        counted = [each for each in energies if each is not None]
        self.energy_j = sum(counted) if energies and len(counted) == len(energies) else None

    def _read_processes(self, gpu: str) -> None:
        processes = self._nvml.processes(gpu)
        others = {pid: size for pid, size in (processes or {}).items() if not self._is_own(pid)}
        if processes is not None and others.keys() != self._others.get(gpu, {}).keys():
            self._others[gpu] = others
            self._trace.write("processes", gpu=gpu, others=others)


class Scraper:
    """Reads the metrics page and writes what changed."""

    def __init__(self, url: str, trace: TraceWriter | None = None) -> None:
        """Read the page at `url`; without a `trace` nothing is written."""
        self._url, self._trace = url, trace
        self._pool = urllib3.PoolManager(retries=False, timeout=_TIMEOUT_S)
        self._lock = threading.Lock()
        self.page: Page = {}
        """The last page that was answered."""

    def scrape(self) -> Page | None:
        """Return the page; None if there was no answer."""
        with self._lock:  # the trace has the difference to the page before
            began_s = time.monotonic()
            page = self._read()
            self.page = page or self.page
            if self._trace:
                self._trace.write_scrape(began_s, page)
            return page

    def _read(self) -> Page | None:
        try:
            answer = self._pool.request("GET", self._url)
        except urllib3.exceptions.HTTPError:
            return None
        return parse_page(answer.data.decode(errors="replace")) if answer.status == 200 else None  # noqa: PLR2004


def endpoint_processes(engine_pid: int | None, at_first: Collection[int]) -> Callable[[int], bool]:
    """Return the test whether a process is the endpoint's: the engine's server, or a process below it.

    In another PID namespace, as a container's, the engine's id means nothing here. Then the endpoint's processes are
    those that were on its GPUs at first.
    """
    if engine_pid is None:
        return lambda pid: pid in at_first

    def is_own(pid: int) -> bool:
        while pid > 1 and pid != engine_pid:
            pid = _parent(pid)
        return pid == engine_pid

    return is_own


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def find_status(observe_url: str) -> dict[str, Any] | None:
    """Return /status of a running servekit; None if there is no answer."""
    try:
        answer = urllib3.request("GET", f"{observe_url}/status", retries=False, timeout=_TIMEOUT_S)
        return dict(answer.json())
    except (urllib3.exceptions.HTTPError, ValueError, TypeError):
        return None
