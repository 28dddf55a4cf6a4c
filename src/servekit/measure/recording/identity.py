"""What is measured: from the running servekit where it knows, from NVML and the files otherwise."""

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from servekit.measure.figures.counters import parse_name
from servekit.measure.record import Checkpoint, CheckpointFile, Contract, Gpu, Host, Identity
from servekit.measure.trace import Page
from servekit.nvml import NVML, Nvml
from servekit.preflight.host.gpus import visible_gpus
from servekit.preflight.hub.hub_model import find_hub_model

_HASHED_BYTES: Final = 64 << 20
"""A larger file is told by its name in the hub's cache or by its header: reading gigabytes would disturb the load."""
_SHA256_DIGITS: Final = 64
_BUILD: Final = "servekit_build_info"
_GPU_SAMPLE: Final = "servekit_gpu_memory_total_bytes"
_HEADER_SIZE_BYTES: Final = 8


def describe(
    status: Mapping[str, Any], page: Page, gpus: Sequence[Gpu], facts: Mapping[str, str], *, environ: Mapping[str, str]
) -> Identity:
    """Return what is measured; `status` is empty for an engine without servekit."""
    plan = status.get("plan", {})
    build = next((parse_name(sample)[1] for sample in page if sample.startswith(f"{_BUILD}{{")), {})
    here = engine_here(status)
    items = status.get("contract") or []
    return Identity(
        endpoint=status.get("endpoint"),
        served_name=status.get("served_name"),
        target=plan.get("target"),
        servekit=build.get("version"),
        vllm=build.get("engine_version"),
        profile=plan.get("profile"),
        profile_sha256=_hash(_seen_by(here, plan["profile"])) if here else None,
        arguments=plan.get("argv", []),
        contract=Contract(
            met=all(item["met"] for item in items) if items else None,
            items=items,
            deviations=plan.get("deviations", []),
        ),
        checkpoint=_checkpoint(plan["model"], status.get("commit") or "", here, environ) if plan else None,
        gpus=list(gpus),
        host=_host(),
        facts=dict(facts),
    )


def engine_here(status: Mapping[str, Any]) -> int | None:
    """Return the process id of the engine's server if it is a process of this host and PID namespace."""
    pid, argv = status.get("engine_pid"), status.get("plan", {}).get("argv", [])
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return pid if argv and argv[-1] in words and "--served-model-name" in words else None


def endpoint_gpus(page: Page, status: Mapping[str, Any], *, local: bool, nvml: Nvml = NVML) -> list[Gpu]:
    """Return the GPUs that servekit reports; otherwise, for an engine on this host, those that NVML finds."""
    labels = [parse_name(sample)[1] for sample in page if sample.startswith(f"{_GPU_SAMPLE}{{")]
    named = {each["gpu"]: each.get("name") for each in labels}
    survey = nvml.survey()
    here = {gpu.uuid: gpu for gpu in survey.gpus} if survey else {}
    on_cpu = status.get("plan", {}).get("target") == "cpu"
    uuids = list(named) or ([gpu.uuid for gpu in visible_gpus(survey)] if survey and local and not on_cpu else [])
    return [_gpu(uuid, named.get(uuid), here, survey and (survey.driver, survey.cuda), nvml) for uuid in uuids]


def _gpu(uuid: str, name: str | None, here: Mapping[str, Any], versions: Any, nvml: Nvml) -> Gpu:
    if uuid not in here:
        return Gpu(uuid=uuid, name=name)
    readings = nvml.read(uuid, ("power_limit_w", "sm_clock_mhz", "memory_clock_mhz"))
    driver, cuda = versions
    return Gpu(
        uuid=uuid,
        name=here[uuid].name,
        driver=driver,
        cuda=".".join(map(str, cuda)),
        memory_bytes=here[uuid].memory_bytes,
        power_limit_w=readings.power_limit_w,
        sm_clock_mhz=readings.sm_clock_mhz,
        memory_clock_mhz=readings.memory_clock_mhz,
    )


def _checkpoint(model: str, commit: str, engine_pid: int | None, environ: Mapping[str, str]) -> Checkpoint:
    folder = _folder(model, commit, engine_pid, environ) if engine_pid is not None else None
    if folder is None:
        return Checkpoint(model=model, commit=commit or None)
    files = [_file(each, str(each.relative_to(folder))) for each in sorted(folder.rglob("*")) if each.is_file()]
    return Checkpoint(model=model, commit=commit or None, bytes_on_disk=sum(each.bytes for each in files), files=files)


def _folder(model: str, commit: str, engine_pid: int, environ: Mapping[str, str]) -> Path | None:
    """Return the folder of the model's files: the engine's own, or the commit that it serves in the hub's cache."""
    folder = _seen_by(engine_pid, model)
    if not folder.is_dir() and commit and (hub := find_hub_model(model, commit, environ, engine="")):
        folder = hub.snapshot
    return folder if folder.is_dir() else None


def _file(path: Path, name: str) -> CheckpointFile:
    size = path.stat().st_size
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == _SHA256_DIGITS:
        return CheckpointFile(name=name, bytes=size, sha256=blob, of="hub")
    if size <= _HASHED_BYTES:
        return CheckpointFile(name=name, bytes=size, sha256=_hash(path), of="content")
    if path.suffix == ".safetensors":
        return CheckpointFile(name=name, bytes=size, sha256=_hash(path, header=True), of="header")
    return CheckpointFile(name=name, bytes=size)


def _hash(path: Path, *, header: bool = False) -> str | None:
    """Return the SHA-256 of a file, or of its safetensors header; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            if not header:
                return hashlib.file_digest(file, "sha256").hexdigest()
            length = file.read(_HEADER_SIZE_BYTES)
            return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()
    except OSError:
        return None


def _seen_by(engine_pid: int, path: str) -> Path:
    """Return a path as the engine sees it: a relative one starts in its working folder."""
    return Path(f"/proc/{engine_pid}/cwd").resolve() / path


def _host() -> Host:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        memory = None
    return Host(
        system=platform.system(),
        processor=model,
        cores=os.cpu_count() or 1,
        memory_bytes=memory,
    )
