"""CodeCarbon as a second reader of the GPUs' energy counter, beside the measurement."""

import importlib
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from servekit.errors import ConfigurationError, Finding
from servekit.measure.trace import TraceWriter

DEFAULT_INTERVAL_S: Final = 15.0
"""CodeCarbon's own default."""
_J_PER_KWH: Final = 3.6e6
_OPTION: Final = "--codecarbon"


class SecondReader:
    """CodeCarbon 3.3 without its estimates of CPU, memory and emissions, and without network and files."""

    def __init__(self, gpus: Sequence[int], interval_s: float) -> None:
        """Prepare for the GPUs with these indices of NVML; raises ConfigurationError without CodeCarbon or a GPU."""
        if not gpus:
            raise ConfigurationError([Finding("NVML reads no GPU of this endpoint here", _OPTION)])
        try:
            self._library: Any = importlib.import_module("codecarbon")
        except ImportError as error:
            remedy = "in a checkout of servekit: pip install '.[codecarbon]'"
            raise ConfigurationError([Finding("CodeCarbon is not installed", _OPTION, remedy=remedy)]) from error
        self._interval_s = interval_s
        self._warnings = _Warnings()
        logging.getLogger("codecarbon").addHandler(self._warnings)
        # Every argument that changes GPU energy is given, because a .codecarbon.config would replace its default.
        self._tracker = self._library.OfflineEmissionsTracker(
            country_iso_code="USA",  # it demands one; the emissions are not recorded
            measure_power_secs=interval_s,
            output_methods=[],
            gpu_ids=list(gpus),  # not UUIDs: 3.3.2 strips the letter G from them and finds none
            force_cpu_power=1,  # it looks for the CPU's own power for seconds otherwise
            tracking_mode="machine",
            pue=1.0,
            log_level="warning",
            allow_multiple_runs=True,
        )
        self._began_s = 0.0

    def start(self) -> None:
        """Read the counter for the first time; detecting the hardware takes it some seconds."""
        self._tracker.start()
        self._began_s = time.monotonic()

    def stop(self, trace: TraceWriter) -> None:
        """Read the counter for the last time and write what it found; nothing of it remains in this process."""
        ended_s = time.monotonic()
        self._tracker.stop()
        logging.getLogger("codecarbon").removeHandler(self._warnings)
        found = getattr(self._tracker, "final_emissions_data", None)
        # Without the program nvidia-smi, CodeCarbon 3.3 looks for no GPU and reports 0 kWh.
        joules = found.gpu_energy * _J_PER_KWH if found and found.gpu_energy else None
        trace.write(
            "codecarbon",
            ended_s,
            began_s=round(self._began_s, 6),
            version=self._library.__version__,
            interval_s=self._interval_s,
            joules=joules,
            warnings=self._warnings.lines,
        )


class _Warnings(logging.Handler):
    """Keeps what CodeCarbon logs about GPUs, such as a reading that failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, each once."""
        line = record.getMessage()
        if "gpu" in line.lower() and line not in self.lines:
            self.lines.append(line)
