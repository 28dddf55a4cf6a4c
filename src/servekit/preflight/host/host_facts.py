"""The host: its GPU or CPU, ports, cache folder and shared memory, checked against the profile."""

import ctypes
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from servekit.file_trouble import find_trouble, or_elsewhere
from servekit.nvml import GpuFacts
from servekit.preflight.findings import Finding, error, note, warning
from servekit.preflight.host.gpu_rules import check_gpu, one_gpu
from servekit.preflight.host.gpus import check_readable
from servekit.preflight.host.host_memory import host_memory, read_text
from servekit.preflight.host.ports import check_ports
from servekit.preflight.memory.gpu_models import GIB, MIB, gib
from servekit.preflight.start import Start
from servekit.settings import Target

COMPILE_CACHE_BYTES: Final = 2 * GIB
CPU_PROCESSES_BYTES: Final = int(2.5 * GIB)
"""API server, engine core and worker of the CPU engine beside weights and KV cache, as measured."""
QUEUE_BYTES: Final = {"cpu": 400 * MIB, "cuda": 64 * MIB}
"""Shared memory of the engine's queues. On the CPU there are two between engine core and worker, 10 chunks of 16 MiB
and 10 of 24 MiB (vLLM 0.20.2, v1/executor/multiproc_executor.py); with one GPU there is none, 64 MiB is Docker's
default."""


@dataclass(frozen=True)
class HostFacts:
    """The host. `gpu` is None for target cpu, and if not exactly one is visible."""

    target: str
    gpu: GpuFacts | None
    driver: str
    cores: int
    memory_bytes: int
    available_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as values that JSON can hold."""
        gpu = self.gpu and {
            "name": self.gpu.name,
            "uuid": self.gpu.uuid,
            "capability": ".".join(map(str, self.gpu.capability)),
            "memory_bytes": self.gpu.memory_bytes,
            "free_bytes": self.gpu.free_bytes,
        }
        return {**vars(self), "gpu": gpu}


def inspect_host(
    start: Start,
    *,
    downloads: Mapping[Path, int] = MappingProxyType({}),
    weights_bytes: int = 0,
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
) -> tuple[HostFacts, tuple[Finding, ...]]:
    """Check the host for a start.

    `downloads` maps a folder to the bytes that the engine will download into it; `weights_bytes` is the size of the
    weights on the CPU engine; `root` is the folder of proc and sys.
    """
    memory, available = host_memory(root)
    survey = start.survey
    gpu, gpu_findings = one_gpu(survey, environ) if start.target is Target.CUDA else (None, ())
    findings = [
        *check_ports(start.addresses),
        *_check_folders({start.cache_dir: COMPILE_CACHE_BYTES, **downloads}),
        *_check_shared_memory(root / "dev/shm", QUEUE_BYTES[start.target]),
    ]
    if start.target is Target.CPU:
        memory_findings = _check_memory(available, weights_bytes, start.kv_space_gib)
        findings += [*_check_cpu(root), *_check_libraries(), *memory_findings]
    else:
        findings += [*check_readable(survey), *gpu_findings]
        findings += check_gpu(gpu, survey, start.arguments) if gpu and survey else ()
    return HostFacts(
        target=start.target.value,
        gpu=gpu,
        driver=survey.driver if survey else "",
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory,
        available_bytes=available,
    ), tuple(findings)


def _check_folders(wanted: Mapping[Path, int]) -> Iterator[Finding]:
    """Report each folder that is not writable, or whose file system lacks room for all of the folders on it."""
    devices: Counter[int] = Counter()
    for folder, size in wanted.items():
        if why := find_trouble(folder, "rwx"):
            yield error("cache-folder", subject=str(folder), **or_elsewhere(why))
            continue
        existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        device = existing.stat().st_dev
        devices[device] += size
        free = shutil.disk_usage(existing).free
        if free < devices[device]:
            yield error(
                "cache-space",
                f"{gib(free)} are free, but compilation and download take up to {gib(devices[device])}",
                subject=str(folder),
                remedy="free some space, or choose another cache folder",
            )


def _check_shared_memory(folder: Path, wanted: int) -> Iterator[Finding]:
    if folder.is_dir() and (size := shutil.disk_usage(folder).total) < wanted:
        yield warning(
            "shared-memory",
            f"has {size // MIB} MiB, but the engine's queues may take {wanted // MIB} MiB",
            subject=str(folder),
            remedy="start the container with shm_size: 1gb or ipc: host",
        )


def _check_cpu(root: Path) -> Iterator[Finding]:
    flags = next(
        (line.split() for line in read_text(root / "proc/cpuinfo").splitlines() if line.startswith("flags")), []
    )
    # Only an x86 CPU has flags. vLLM 0.20.2, platforms/cpu.py: one extension for AVX2, one for AVX-512
    if flags and "avx2" not in flags:
        yield error("cpu-features", "the CPU has no AVX2, which the CPU engine requires", remedy="use another host")
    elif flags and "avx512_bf16" not in flags:
        yield note("cpu-features", "the CPU has no AVX-512 BF16: the CPU engine will be slow")


def _check_libraries(load: Callable[[str], object] = ctypes.CDLL) -> Iterator[Finding]:
    # The CPU extension of vLLM 0.20.2 links against it. Without it the engine fails half a minute later, with an
    # AttributeError that does not name the library (platforms/cpu.py, import_kernels).
    try:
        load("libnuma.so.1")
    except OSError:
        yield error("cpu-library", "libnuma.so.1 is not installed", remedy="on Debian: apt-get install libnuma1")


def _check_memory(available: int, weights_bytes: int, kv_space_gib: int) -> Iterator[Finding]:
    wanted = CPU_PROCESSES_BYTES + weights_bytes + kv_space_gib * GIB
    if available and available < wanted:
        yield error(
            "cpu-memory",
            f"{gib(available)} are available, but processes, weights and KV cache take about {gib(wanted)}",
            remedy="free some memory, or lower VLLM_CPU_KVCACHE_SPACE",
        )
