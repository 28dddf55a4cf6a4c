"""All of preflight: it checks the checkpoint, the host and the memory plan before anything starts."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from servekit import ENGINE_VERSION
from servekit.file_trouble import find_trouble
from servekit.preflight.checkpoint.checkpoint_facts import CheckpointFacts, inspect_checkpoint
from servekit.preflight.checkpoint.config_file import check_context
from servekit.preflight.checkpoint.model_path import wrong_path
from servekit.preflight.drafter import inspect_drafter
from servekit.preflight.findings import Finding, error, has_errors, in_order, located, note
from servekit.preflight.fp8_activations import DEVIATION, check_activations
from servekit.preflight.host.gpu_rules import check_capability
from servekit.preflight.host.host_facts import HostFacts, inspect_host
from servekit.preflight.host.patches import check_patches
from servekit.preflight.hub.hub_answer import ask_hub
from servekit.preflight.hub.hub_model import expanded, not_found
from servekit.preflight.memory.capacity import plan_capacity
from servekit.preflight.memory.memory_plan import MemoryPlan
from servekit.preflight.memory.memory_report import plan_as_dict
from servekit.preflight.start import DEFAULT_MODEL, Start
from servekit.settings import Target


@dataclass(frozen=True)
class Examination:
    """What preflight found."""

    findings: tuple[Finding, ...]
    skipped: tuple[Finding, ...]
    """Findings that the user skips; servekit reports them all the same."""
    checkpoint: CheckpointFacts | None
    host: HostFacts
    memory: MemoryPlan | None

    @property
    def failed(self) -> bool:
        """Whether the start would fail."""
        return has_errors(self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "skipped": [finding.as_dict() for finding in self.skipped],
            "checkpoint": self.checkpoint.as_dict() if self.checkpoint else None,
            "host": self.host.as_dict(),
            "memory": plan_as_dict(self.memory) if self.memory else None,
        }


def examine(start: Start, environ: Mapping[str, str] = os.environ) -> Examination:
    """Check the checkpoint, the host and the memory for a start."""
    checkpoint, found, downloads = _inspect_model(start, environ)
    findings = [*_check_engine(start), *found, *start.embeddings.findings]
    if DEVIATION in start.deviations:
        findings += check_activations(start.target, start.gpu, start.arguments.quantization)
    weights = checkpoint.weights(start.arguments) if checkpoint else None
    host, found = inspect_host(
        start,
        downloads=downloads,
        weights_bytes=weights.total_bytes if weights else 0,
        environ=environ,
    )
    findings += found
    known, memory = checkpoint, None
    drafter_bytes, found_of_drafter = inspect_drafter(start, environ)
    findings += found_of_drafter
    if checkpoint is None and start.model == DEFAULT_MODEL and start.gpu:
        from servekit.preflight.memory.default_model import default_checkpoint  # its imports are for this case only

        quantized = start.arguments.quantization is not None
        known = default_checkpoint(quantized=quantized)
        shapes = f"gemma-4-E4B in {'W4A16' if quantized else 'BF16, as the profile sets no quantization'}"
        findings.append(note("memory-known-shapes", f"planned from the known shapes of {shapes}; no file was read"))
        findings += check_context(known.config.text, start.arguments.max_model_len) if known.config.text else ()
    if start.gpu:
        dtype = known.kv_cache_dtype(start.arguments) if known else start.arguments.kv_cache_dtype
        findings += check_capability(start.gpu, dtype)
    if known and (start.gpu or start.target is Target.CPU):
        memory, found = plan_capacity(
            known,
            start.arguments,
            start.gpu,
            kv_space_gib=start.kv_space_gib,
            host_bytes=host.memory_bytes,
            drafter_bytes=drafter_bytes,
            embeddings_on_host=start.embeddings.memory == "host",
            flashinfer=start.flashinfer,
        )
        findings += found
    found = in_order(located(each, start.profile) if each.key and not each.file else each for each in findings)
    return Examination(
        findings=tuple(each for each in found if each.name not in start.skip),
        skipped=tuple(each for each in found if each.name in start.skip),
        checkpoint=checkpoint,
        host=host,
        memory=memory,
    )


def _inspect_model(
    start: Start, environ: Mapping[str, str]
) -> tuple[CheckpointFacts | None, tuple[Finding, ...], dict[Path, int]]:
    """Check the files that are here; return what they are, the findings, and the bytes to download by folder."""
    hub, folder = start.hub, expanded(start.model)
    capability = start.gpu.capability if start.gpu else None
    inspect = partial(inspect_checkpoint, arguments=start.arguments, target=start.target, capability=capability)
    if why := next(filter(None, map(find_trouble, hub.places if hub else (folder,))), None):
        return None, (error("checkpoint-unreadable", subject=start.model, **why),), {}
    if hub is None and (wrong := wrong_path(folder)):
        return None, (wrong,), {}
    if hub is None:
        return (*inspect(folder), {}) if folder.is_dir() else (None, (not_found(start.model),), {})
    if hub.whole:
        return *inspect(hub.snapshot, revision=hub.commit), {}
    answer = ask_hub(hub, environ)
    _, found = inspect(hub.snapshot, whole=False) if hub.snapshot.is_dir() else (None, ())
    return None, (*answer.findings, *found), {} if hub.offline else {hub.repository: answer.missing_bytes}


def _check_engine(start: Start) -> list[Finding]:
    if not start.engine:
        return []
    if shutil.which(start.engine):
        return check_patches(start.engine_patches)
    if "/" in start.engine and (why := find_trouble(Path(start.engine), "x")):
        return [error("engine-missing", subject="--engine", **why)]
    remedy = f"install vLLM {ENGINE_VERSION} (for the CPU: make install) and set --engine or SERVEKIT_ENGINE"
    what = "is a folder, not a program" if os.path.isdir(start.engine) else "no such program"  # noqa: PTH112
    return [error("engine-missing", f"{what}: {start.engine}", subject="--engine", remedy=remedy)]
