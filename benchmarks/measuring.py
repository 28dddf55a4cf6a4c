"""What `servekit measure` itself costs, in CPU time, while it reads a GPU and an endpoint's metrics."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from servekit.measure.recording.session import Job, measure
from servekit.measure.statistics import extremes
from servekit.nvml import Nvml
from tests.harness.http import get
from tests.harness.ports import free_port

NAME = "measuring"
ROUNDS = 3
SECONDS = 30
TARGET_SHARE = 0.01
"""Of one core."""
SAMPLES = 1500
"""More than servekit's page has; a quarter of them change from scrape to scrape."""

LOAD = """
import itertools, os, sys, time
page, seconds, samples = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
end = time.monotonic() + seconds
for number in itertools.count():
    name = 'vllm:family_{}_bucket{{engine="0",le="{}",model_name="m"}}'
    lines = [f"{name.format(i % 40, i)} {0 if i % 4 else number}.0" for i in range(samples)]
    gpu = f'servekit_gpu_memory_total_bytes{{gpu="GPU-1234",name="NVIDIA L4"}} 2.4e+10'
    tokens = f'vllm:generation_tokens_total{{engine="0"}} {number}.0'
    with open(page + ".new", "w") as file:
        file.write("\\n".join([*lines, gpu, tokens, ""]))
    os.replace(page + ".new", page)
    if time.monotonic() > end:
        break
    time.sleep(0.5)
"""


class Library:
    """NVML that answers at once; a real one takes longer, and so does its driver."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a function that counts up, whichever is asked for."""
        field = SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=70_000))
        answers: dict[str, Any] = {
            "nvmlDeviceGetFieldValues": [field],
            "nvmlDeviceGetComputeRunningProcesses": [],
            "nvmlDeviceGetTotalEnergyConsumption": time.monotonic() * 70_000,
        }
        return lambda *_: answers.get(name, 0)


def run(rounds: int | None) -> dict[str, Any]:
    """Measure a load that only writes a page of metrics; the GPU is a fake."""
    shares, sizes = [], []
    for _ in range(rounds or ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            shares.append(_share(Path(folder)))
            sizes.append((Path(folder) / "cost.trace.jsonl.gz").stat().st_size / SECONDS)
    return {"cpu_share": shares, "trace_bytes_per_s": sizes, "seconds": SECONDS, "samples": SAMPLES}


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    cost = extremes(result["cpu_share"])
    size = extremes(result["trace_bytes_per_s"])
    return [
        f"of one core      {cost.median:.2%} ({cost.low:.2%} to {cost.high:.2%}; target {TARGET_SHARE:.0%})",
        f"raw trace        {size.median * 3600 / 1e6:.1f} MB an hour",
    ]


def _share(folder: Path) -> float:
    port = free_port()
    (folder / "status").write_text(
        '{"ready": true, "state": "ready", "plan": {"model": "m", "argv": [], "target": "cuda"}}'
    )
    page = folder / "metrics"
    load = [sys.executable, "-c", LOAD, str(page)]
    subprocess.run([*load, "0", str(SAMPLES)], check=True)
    server = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while get(f"http://127.0.0.1:{port}/status")[0] != HTTPStatus.OK:
                time.sleep(0.05)
            job = Job(
                "cost",
                folder / "cost.json",
                [*load, str(SECONDS), str(SAMPLES)],
                0,
                f"http://127.0.0.1:{port}",
                quiet=True,
            )
            began_s, began_cpu_s = time.monotonic(), time.process_time()
            record, _ = measure(job, nvml=Nvml(Library()))
            assert record is not None
            assert record.trace.readings > 0
            return (time.process_time() - began_cpu_s) / (time.monotonic() - began_s)
        finally:
            process.kill()
