"""What servekit will start, decided from the profile, the settings and the host, as far as preflight needs it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from servekit.errors import ConfigurationError, Finding
from servekit.nvml import GpuSurvey
from servekit.preflight.fp8_activations import DEVIATION
from servekit.preflight.host.gpu_rules import gpu_model
from servekit.preflight.host.gpus import SurveyGpus, survey_gpus, visible_gpus
from servekit.preflight.host.host_memory import host_memory
from servekit.preflight.hub.hub_model import HubModel, find_hub_model
from servekit.preflight.memory.gpu_models import GpuModel
from servekit.preflight.memory.placement import Placement, place_embeddings
from servekit.profile import CPU_DEVIATION, Deviation, EngineArguments, Profile, Value, resolve
from servekit.settings import Sampler, Settings, Target

DEFAULT_MODEL: Final = "salve-mundii/gemma4-E4B-opt"
CPU_KV_SPACE_GIB: Final = 1


@dataclass(frozen=True)
class Adjustment:
    """A value outside the contract that the target changes or adds."""

    key: str
    used: Value
    reason: str


_CPU_ADJUSTMENTS: Final = (
    Adjustment(
        "enforce-eager", used=True, reason="no compilation: the CPU engine is for trying out, its start should be quick"
    ),
    Adjustment("skip-mm-profiling", used=True, reason="no encoder profiling run at the start"),
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The model, the engine and its arguments, and the host that it needs."""

    target: Target
    """Not AUTO."""
    profile: Path
    model: str
    hub: HubModel | None = None
    """The model in the hub and its cache; None for a folder."""
    demo: bool = False
    """Whether `model` is the embedded checkpoint, which servekit builds where it does not exist yet."""
    values: Mapping[str, Value]
    """The engine's arguments by their dashed names, deviations and adjustments applied: what vLLM is given."""
    arguments: EngineArguments
    """The same, typed and completed with vLLM's defaults."""
    deviations: tuple[Deviation, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    engine: str = ""
    """The engine's program; empty: preflight looks for none."""
    engine_patches: Path | None = None
    """The folder of packages that go before the engine's own."""
    addresses: Mapping[str, tuple[str, int]]
    """Flags and the (host, port) that they want."""
    cache_dir: Path
    kv_space_gib: int = CPU_KV_SPACE_GIB
    """VLLM_CPU_KVCACHE_SPACE, of the CPU engine."""
    survey: GpuSurvey | None = None
    """The GPUs of this host; None without an NVIDIA driver, and for target cpu."""
    gpu: GpuModel | None = None
    """The GPU that the memory is planned for; None for target cpu, and where not exactly one is visible."""
    embeddings: Placement = field(default_factory=Placement)
    """The memory of the per-layer embeddings."""
    flashinfer: bool = False
    """Whether FlashInfer's kernels draw tokens; a request with a seed sends its batch to vLLM's own all the same."""
    skip: tuple[str, ...] = ()
    """Names of the findings to skip."""


def make_start(
    profile: Profile,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    gpu: GpuModel | None = None,
    survey: SurveyGpus = survey_gpus,
) -> Start:
    """Decide what to start for `profile`; `gpu` is planned for instead of the host's.

    Target `auto` is cuda where NVML answers, even if it sees no GPU: a driver without a GPU is a fault for preflight to
    report, not a reason to serve on the CPU silently. Raises ConfigurationError for a wrong VLLM_CPU_KVCACHE_SPACE, and
    for a revision of a model that is not the hub's.
    """
    target = settings.target
    found = None if target is Target.CPU else survey()
    if target is Target.AUTO:
        target = Target.CPU if found is None else Target.CUDA
    visible = visible_gpus(found, environ) if found else ()
    host = host_memory() if gpu is None else (0, 0)
    if gpu is None and len(visible) == 1:
        gpu = gpu_model(visible[0])
    values, deviations = dict(profile.arguments), profile.deviations
    adjustments: tuple[Adjustment, ...] = ()
    if target is Target.CPU:
        adjustments = tuple(each for each in _CPU_ADJUSTMENTS if each.key not in values)
        values |= {each.key: each.used for each in adjustments}
        if values.get(CPU_DEVIATION.key) not in (None, CPU_DEVIATION.used):
            values[CPU_DEVIATION.key] = str(CPU_DEVIATION.used)
            deviations = (*(each for each in deviations if each.key != CPU_DEVIATION.key), CPU_DEVIATION)
    if settings.fp8_activations:
        deviations = (*deviations, DEVIATION)
    demo = not settings.model and target is Target.CPU
    model = settings.model or (_demo_model(settings.cache_dir) if demo else DEFAULT_MODEL)
    hub = None if demo else find_hub_model(model, settings.revision, environ, settings.engine)
    if settings.revision and hub is None:
        remedy = "leave it out, or give the hub id of the model with --model"
        raise ConfigurationError(
            [Finding(f"only a model of the hub has revisions, not {model}", "--revision", remedy=remedy)]
        )
    arguments = resolve(
        values, target=target, gpu_name=gpu.name if gpu else "", gpu_bytes=gpu.usable_bytes if gpu else 0
    )
    return Start(
        target=target,
        profile=profile.path,
        model=model,
        hub=hub,
        demo=demo,
        values=values,
        arguments=arguments,
        deviations=deviations,
        adjustments=adjustments,
        engine=settings.engine,
        engine_patches=find_engine_patches(settings),
        addresses={"--port": (settings.host, settings.port)},
        cache_dir=settings.cache_dir,
        kv_space_gib=_kv_space_gib(environ) if target is Target.CPU else CPU_KV_SPACE_GIB,
        survey=found,
        gpu=gpu,
        embeddings=place_embeddings(settings.embeddings, target, gpu, arguments, host=host),
        flashinfer=target is Target.CUDA and _draws_with_flashinfer(settings, environ),
        skip=settings.skip,
    )


def _kv_space_gib(environ: Mapping[str, str]) -> int:
    text = environ.get("VLLM_CPU_KVCACHE_SPACE") or str(CPU_KV_SPACE_GIB)
    if not text.isdecimal():
        raise ConfigurationError([Finding("must be a whole number of GiB", "VLLM_CPU_KVCACHE_SPACE", got=text)])
    return int(text)


def _draws_with_flashinfer(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Decide for `auto` by whether the kernels are compiled: in the engine's environment, or by an earlier start."""
    if asked := environ.get("VLLM_USE_FLASHINFER_SAMPLER"):
        return asked == "1"
    if settings.sampler is not Sampler.AUTO:
        return settings.sampler is Sampler.FLASHINFER
    environment = _environment_of(settings.engine)
    packages = "lib/python3*/*-packages/flashinfer_jit_cache/jit_cache/sampling/sampling.so"
    compiled = (
        environment.glob(packages) if environment else (),
        settings.cache_dir.glob(".cache/flashinfer/*/*/cached_ops/sampling/sampling.so"),
    )
    return any(any(each) for each in compiled)


def _demo_model(cache_dir: Path) -> str:
    from servekit.demo.build import demo_directory  # only where it is served: its imports take time

    return str(demo_directory(cache_dir))


def find_engine_patches(settings: Settings) -> Path | None:
    """Return the folder of packages that go before the engine's own: the one set, or the one beside the engine."""
    if settings.engine_patches is not None:
        return settings.engine_patches.absolute()
    environment = _environment_of(settings.engine)
    if environment is None:
        return None
    beside = environment.parent / f"{environment.name}-patches"
    return beside if beside.is_dir() else None


def _environment_of(engine: str) -> Path | None:
    """Return the folder of the engine, as .venv-engine is of .venv-engine/bin/vllm; None without such a program."""
    program = shutil.which(engine)
    return Path(program).absolute().parent.parent if program else None
