"""A GPU whose power is known at every moment, and traces of runs on it, written by the real writer."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servekit.measure.figures.compute import compute_record
from servekit.measure.figures.energy import Sample
from servekit.measure.record import Record
from servekit.measure.trace import FORMAT, Trace, TraceWriter, read_trace

GPU = "GPU-1234"
STEP_S = 0.1
"""How often NVML's energy counter moves."""


@dataclass(frozen=True)
class Power:
    """Watts over time: parts of (seconds, watts), from second 0; the last one lasts for ever."""

    parts: Sequence[tuple[float, float]]

    def watts(self, t: float) -> float:
        """Return the power at a moment."""
        ends = itertools.accumulate(length for length, _ in self.parts)
        return next((watts for end, (_, watts) in zip(ends, self.parts, strict=True) if t < end), self.parts[-1][1])

    def joules(self, t: float) -> float:
        """Return the true energy since second 0."""
        used = begun = 0.0
        for number, (length, watts) in enumerate(self.parts):
            last = number == len(self.parts) - 1
            used += max(0.0, min(t - begun, math.inf if last else length)) * watts
            begun += length
        return used

    def counter(
        self, t: float, *, start_j: float = 1e6, restarts: Sequence[float] = (), step_s: float = STEP_S
    ) -> float:
        """Return NVML's counter: in steps of time and of whole mJ, from `start_j`, at zero at each of `restarts`."""
        since = max((each for each in restarts if each <= t), default=None)
        moved = math.floor(round(t / step_s, 6)) * step_s
        used = self.joules(moved)
        base = start_j if since is None else -self.joules(since)
        return math.floor(max(0.0, base + used) * 1000) / 1000

    def samples(self, times: Sequence[float], **counter: Any) -> list[Sample]:
        """Return complete readings at these moments."""
        return [Sample(t, self.counter(t, **counter), self.watts(t)) for t in times]


def every(seconds: float, interval_s: float = 0.1, *, start: float = 0.0) -> list[float]:
    """Return the moments of a sampler that never misses one."""
    return [start + number * interval_s for number in range(round(seconds / interval_s) + 1)]


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Run:
    """A measured run, second by second: what a test changes makes another trace."""

    name: str = "run"
    idle_s: float = 60
    run_s: float = 600
    idle_w: float = 16.0
    run_w: float = 71.5
    interval_s: float = 0.1
    output_tokens: int = 120_000
    prompt_tokens: int = 480_000
    requests: int = 600
    streams: int = 8
    canaries: int = 0
    exit_code: int | None = 0
    gpus: Sequence[str] = (GPU,)
    reading: Callable[[float, dict[str, Any]], Mapping[str, Any]] = lambda _, values: values
    """Changes a GPU's reading: the moment after the beginning of the run, and the values."""
    page: Callable[[float, dict[str, str]], dict[str, str] | None] = lambda _, page: page
    """Changes a metrics page, by the same clock; None: no answer."""
    others: Sequence[tuple[float, Mapping[str, int]]] = ()
    """Foreign processes on the first GPU from a moment on."""
    scores: Mapping[str, float] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    argv: Sequence[str] = ("vllm", "serve", "m")
    codecarbon: Mapping[str, Any] | None = None
    """What CodeCarbon found from the beginning of the run to its end."""

    def write(self, path: Path) -> Path:
        """Write the trace."""
        clock = Clock()
        trace = TraceWriter(path, clock)
        begin: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "command": ["load"],
            "servekit": "1",
            "time": "2026-01-02T03:04:05Z",
        }
        trace.write("begin", interval_s=self.interval_s, scrape_s=1.0, **begin)
        host = {"system": "Linux", "processor": "cpu", "cores": 8}
        gpus = [{"uuid": uuid, "name": "NVIDIA L4"} for uuid in self.gpus]
        trace.write("identity", identity={"host": host, "gpus": gpus, "arguments": list(self.argv), **self.identity})
        power = Power([(self.idle_s, self.idle_w), (self.run_s, self.run_w), (0, self.idle_w)])
        events = self._phases() + [(t, self._others(pids)) for t, pids in self.others]
        events += [(t, self._scrape(t)) for t in every(self.idle_s + self.run_s + 2, 1.0, start=-self.idle_s)]
        events += [
            (t, self._read(t, power)) for t in every(self.idle_s + self.run_s + 2, self.interval_s, start=-self.idle_s)
        ]
        for t, write in sorted(events, key=lambda each: each[0]):
            clock.now = t + self.idle_s
            write(trace)
        trace.close()
        return path

    def trace(self, folder: Path) -> Trace:
        """Return the trace as it is read."""
        return read_trace(self.write(folder / f"{self.name}.trace.jsonl.gz"))

    def record(self, folder: Path) -> Record:
        """Return the record."""
        return compute_record(self.trace(folder))

    def _phases(self) -> list[tuple[float, Callable[[TraceWriter], None]]]:
        phases = [(0.0, "run"), (self.run_s, "after"), *([(-self.idle_s, "idle")] if self.idle_s else [])]
        found = [(t, _phase(name)) for t, name in phases]
        if self.codecarbon is not None:
            second = {"began_s": self.idle_s, "version": "3.3.2", "interval_s": 15.0, "warnings": [], **self.codecarbon}
            found.append((self.run_s, lambda trace: trace.write("codecarbon", **second)))
        end = {"exit_code": self.exit_code, "interrupted": False}
        found.append((self.run_s + 1.9, lambda trace: trace.write("scores", scores=dict(self.scores))))
        return (
            [*found, (self.run_s + 2, lambda trace: trace.write("ended", **end))]
            if self.exit_code is not None
            else found
        )

    def _others(self, pids: Mapping[str, int]) -> Callable[[TraceWriter], None]:
        return lambda trace: trace.write("processes", gpu=self.gpus[0], others=pids)

    def _read(self, t: float, power: Power) -> Callable[[TraceWriter], None]:
        moment = t + self.idle_s
        busy = 0 < t < self.run_s
        values: dict[str, Any] = {
            "energy_j": power.counter(moment),
            "power_w": power.watts(moment),
            "power_instant_w": power.watts(moment),
            "power_limit_w": 72.0,
            "temperature_c": 45.0 + 20 * busy,
            "sm_clock_mhz": 1_350 if busy else 210,
            "memory_clock_mhz": 6_251 if busy else 405,
            "slowdowns": [],
        }
        changed = self.reading(t, values)

        def write(trace: TraceWriter) -> None:
            for uuid in self.gpus:
                trace.write("gpu", gpu=uuid, **changed)

        return write

    def _scrape(self, t: float) -> Callable[[TraceWriter], None]:
        share = min(max(t / self.run_s, 0.0), 1.0)
        busy = 0 < t < self.run_s
        canaries = round(self.canaries * share)
        engine = '{engine="0",model_name="m"}'
        finished = '{{engine="0",finished_reason="{}",model_name="m"}}'
        counts = {
            "process_start_time_seconds": 1.7e9,
            f"vllm:generation_tokens_total{engine}": 352 + round(self.output_tokens * share) + canaries,
            f"vllm:prompt_tokens_total{engine}": 178 + round(self.prompt_tokens * share) + canaries,
            f"vllm:request_success_total{finished.format('stop')}": round(self.requests * share),
            f"vllm:request_success_total{finished.format('length')}": 27 + canaries,
            f"vllm:request_success_total{finished.format('abort')}": round(3 * share),
            f"vllm:num_requests_running{engine}": self.streams if busy else 0,
            f"vllm:num_requests_waiting{engine}": 0,
            f"vllm:kv_cache_usage_perc{engine}": 0.4 if busy else 0.0,
            f"vllm:num_preemptions_total{engine}": round(5 * share),
            f"vllm:prefix_cache_queries_total{engine}": round(1000 * share) + canaries,
            f"vllm:prefix_cache_hits_total{engine}": round(250 * share),
            "servekit_canary_tokens_total": canaries,
            'servekit_guard_requests_total{outcome="too_busy",route="/v1/completions"}': round(7 * share),
            'servekit_guard_requests_total{outcome="allowed",route="/v1/completions"}': round(self.requests * share),
            'servekit_guard_requests_total{outcome="own",route="/health"}': round(t + 1000),
        }
        latency = {"0.1": 0.5, "0.5": 0.9, "1.0": 1.0, "+Inf": 1.0}
        for bound, part in latency.items():
            name = f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="{bound}",model_name="m"}}'
            counts[name] = 27 + round(self.requests * share * part)
        counts[f"vllm:time_to_first_token_seconds_sum{engine}"] = 3.8 + 0.2 * self.requests * share
        page = self.page(t, {name: f"{value:.1f}" for name, value in counts.items()})
        return lambda trace: trace.write_scrape(t + self.idle_s, page)


def _phase(name: str) -> Callable[[TraceWriter], None]:
    return lambda trace: trace.write("phase", phase=name)
