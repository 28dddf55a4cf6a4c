"""All of preflight at once: checkpoint, host and memory plan of one start, before anything is started."""

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts, inspect_checkpoint
from servekit.preflight.checkpoint.hub import hub_cache_folder, is_offline
from servekit.preflight.findings import Finding, error, has_errors, in_order, located
from servekit.preflight.host.host_facts import HostFacts, inspect_host
from servekit.preflight.host.patches import check_patches
from servekit.preflight.memory.capacity import plan_capacity
from servekit.preflight.memory.gpu_models import GpuModel
from servekit.preflight.memory.memory_plan import MemoryPlan, batched_tokens
from servekit.preflight.memory.memory_report import plan_as_dict

_DOWNLOAD_BYTES = 10_200_000_000
"""What the engine will download of gemma4-E4B-opt: 9.33 GB by its card, with room for the rest."""


@dataclass(frozen=True)
class Start:
    """What is about to be started, as far as preflight is concerned."""

    target: str
    """`cuda` or `cpu`."""
    model: str
    arguments: Mapping[str, Any]
    """The engine's arguments under their dashed names."""
    addresses: Mapping[str, tuple[str, int]]
    """Flags and the (host, port) they want."""
    cache_dir: Path
    profile: Path = Path("vllm_config.yaml")
    """The profile's file, where findings about its keys are."""
    engine: str = ""
    """The engine's program; empty: not looked for."""
    engine_patches: Path | None = None
    """The folder of packages that go before the engine's own."""
    kv_space_gib: int = 1
    """VLLM_CPU_KVCACHE_SPACE, of the CPU engine."""


@dataclass(frozen=True)
class Examination:
    """What preflight found."""

    findings: tuple[Finding, ...]
    skipped: tuple[Finding, ...]
    """Findings that the user skips; they are shown all the same."""
    checkpoint: CheckpointFacts | None
    host: HostFacts
    memory: MemoryPlan | None

    @property
    def failed(self) -> bool:
        """Whether the start would fail."""
        return has_errors(self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Give everything as JSON-able values."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "skipped": [finding.as_dict() for finding in self.skipped],
            "checkpoint": self.checkpoint.as_dict() if self.checkpoint else None,
            "host": self.host.as_dict(),
            "memory": plan_as_dict(self.memory) if self.memory else None,
        }


def examine(
    start: Start, *, skip: Collection[str] = (), card: GpuModel | None = None, environ: Mapping[str, str] = os.environ
) -> Examination:
    """Judge a start; `card` plans the memory for that GPU instead of the one in this host."""
    hub_cache = hub_cache_folder(environ)
    checkpoint, found = inspect_checkpoint(
        start.model,
        arguments=start.arguments,
        hub_cache=hub_cache,
        offline=is_offline(environ),
        target=start.target,
    )
    findings = [*_check_engine(start), *found]
    weights = checkpoint.weights(start.arguments, batched_tokens(start.arguments, card)) if checkpoint else None
    host, found = inspect_host(
        start.target,
        arguments=start.arguments,
        addresses=start.addresses,
        cache_dir=start.cache_dir,
        downloads={hub_cache: _DOWNLOAD_BYTES} if any(each.name == "hub-download" for each in findings) else {},
        weights_bytes=weights.total_bytes if weights else 0,
        kv_space_gib=start.kv_space_gib,
        environ=environ,
    )
    findings += found
    memory = None
    wanted = card or host.card
    if checkpoint and (wanted or start.target == "cpu"):
        memory, found = plan_capacity(
            checkpoint,
            start.arguments,
            wanted,
            kv_space_gib=start.kv_space_gib,
            memory_bytes=host.memory_bytes,
        )
        findings += found
    found = in_order(located(each, start.profile) if each.key and not each.file else each for each in findings)
    kept = tuple(each for each in found if each.name not in skip)
    skipped = tuple(each for each in found if each.name in skip)
    return Examination(kept, skipped, checkpoint, host, memory)


def _check_engine(start: Start) -> list[Finding]:
    program = start.engine
    if not program:
        return []
    if shutil.which(program):
        return check_patches(start.engine_patches)
    remedy = f"install vLLM {ENGINE_VERSION} (for the CPU: make install) and set --engine or SERVEKIT_ENGINE"
    return [error("engine-missing", f"no such program: {program}", subject="--engine", remedy=remedy)]
