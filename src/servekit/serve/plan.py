"""Everything that `servekit serve` will do, decided beforehand: argv, environment, addresses, deadlines."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from servekit.errors import Finding
from servekit.preflight import fp8_activations
from servekit.preflight.host.gpus import SurveyGpus, pinned, survey_gpus
from servekit.preflight.hub.hub_model import python_of
from servekit.preflight.memory.gpu_models import MIB, GpuModel
from servekit.preflight.start import CPU_KV_SPACE_GIB, Start, make_start
from servekit.profile import Profile, render
from servekit.serve.engine import early_core
from servekit.serve.engine.environment import passing, withheld
from servekit.serve.guard import (
    CONFIG_FILE_NAME,
    COUNTERS_PATH,
    EFFECTIVE_PATH,
    GuardSettings,
    default_max_in_flight,
    guard_arguments,
    guard_environment,
)
from servekit.serve.guard.inside.servekit_guard.core import embeddings
from servekit.serve.guard.inside.servekit_guard.core.worker import PLUGIN
from servekit.serve.tls import Certificate, load_certificate
from servekit.serve.watch.watcher import HangPolicy
from servekit.settings import Settings, Target

DEMO_SERVED_NAME: Final = "gemma4-demo"

STOP_MARGIN_S: Final = 10
"""What servekit adds to vLLM's own shutdown timeout before it kills: vLLM cleans up for some seconds."""

_CPU_ENVIRONMENT: Final = {
    # Whole GiB of KV cache. Unset, vLLM takes gpu-memory-utilization as a share of a NUMA node and rejects 0.9 of it.
    "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_SPACE_GIB),
    # With enforce-eager vLLM compiles nothing; without dynamo it does not look for a C++ compiler either.
    "TORCHDYNAMO_DISABLE": "1",
}
_CUDA_ENVIRONMENT: Final = {
    # Requests with logprobs or penalties take gigabytes that no start rehearses. Beside a full cache there is room for
    # them while free memory is not in pieces: 1,000 rows with logprobs ended an engine with an L4's memory without it.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
_OTHER_MODELS: Final = frozenset({"tokenizer", "hf-config-path", "lora-modules", "speculative-config"})
"""Arguments that may name another model of the hub, which the engine then downloads itself."""
_SECRET_MARKS: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD")


@dataclass(frozen=True, kw_only=True)
class Plan(Start):
    """What servekit starts, where it listens and how long each step may take (seconds): all that serving needs."""

    served_name: str
    argv: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    """What runs the engine's program; empty where servekit cannot see that it is a Python program."""
    environment: Mapping[str, str]
    """What servekit adds to its own environment."""
    inherited: Mapping[str, str]
    """The variables of Python, vLLM, Hugging Face, CUDA and torch that pass through to the engine, secrets masked."""
    withheld: Mapping[str, str]
    """The names of the variables that do not pass, with the reasons (`environment.py`)."""
    passed: tuple[str, ...] = ()
    """The names of those that the operator passes all the same."""
    host: str
    port: int
    observe_host: str
    observe_port: int
    start_s: float
    drain_s: int
    patience: HangPolicy
    notes: tuple[Finding, ...] = ()
    """What the profile says without effect."""
    as_given: Callable[[Finding], Finding] = lambda finding: finding
    """Names the setting of a finding as the operator gave it: by its flag or by its variable."""
    certificate: Certificate | None = None
    """For HTTPS by the engine's own server; None: plain HTTP."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """The operator's prices: `gpu_hour_price`, `kwh_price` and `kwh_co2_grams`."""
    guard: GuardSettings
    """What the operator decides about the guard."""
    run_dir: Path
    """The folder of what belongs to this run: two endpoints of one user on one host differ in their port."""

    @property
    def command(self) -> tuple[str, ...]:
        """What servekit executes: `argv`, its program run by `launcher`."""
        before = len(self.hub.prefix) if self.hub else 0
        return *self.argv[:before], *self.launcher, *self.argv[before:]

    @property
    def url(self) -> str:
        """Where clients on this host reach the endpoint."""
        return f"{'https' if self.certificate else 'http'}://{connectable(self.host)}:{self.port}"

    @property
    def settle_s(self) -> float:
        """Seconds of the drain in which requests let in just before may reach EngineCore, before its SIGTERM.

        EngineCore takes new ones between two steps: on a busy GPU that is tens of milliseconds, but its first large
        batch after a start with empty caches took ten seconds in a test, most of them compiling.
        """
        return self.guard.settle_s

    @property
    def stop_s(self) -> int:
        """Seconds after SIGTERM at which servekit kills what still runs; a container's stop grace must be longer."""
        return self.drain_s + STOP_MARGIN_S

    @property
    def loaded(self) -> dict[str, str]:
        """What the engine's worker must report of the loaded model."""
        found = {"per-layer-embeddings": self.embeddings.wanted}
        if fp8_activations.DEVIATION in self.deviations:
            found["activations"] = str(fp8_activations.DEVIATION.used)
        return found

    def describe(self) -> dict[str, object]:
        """Return the plan as values that JSON can hold."""
        return {
            "target": self.target.value,
            "profile": str(self.profile),
            "model": self.model,
            "revision": self.hub and self.hub.revision,
            "served_name": self.served_name,
            "argv": list(self.argv),
            "environment": dict(self.environment),
            "inherited_environment": dict(self.inherited),
            "withheld_environment": dict(self.withheld),
            "addresses": {
                "endpoint": f"{self.host}:{self.port}",
                "observe": f"{self.observe_host}:{self.observe_port}",
            },
            "authentication": not self.guard.no_auth,
            "deadlines_s": {
                "start": self.start_s,
                "hang": self.patience.hang_s,
                "canary": self.patience.canary_s,
                "silent": self.patience.silent_s,
                "drain": self.drain_s,
                "stop": self.stop_s,
            },
            "contract": self.arguments.contract,
            "embeddings": self.embeddings.wanted,
            "deviations": [asdict(each) for each in self.deviations],
            "adjustments": [asdict(each) for each in self.adjustments],
        }


def build_plan(
    profile: Profile,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    gpu: GpuModel | None = None,
    survey: SurveyGpus = survey_gpus,
) -> Plan:
    """Return the plan for `profile` under `settings`; `environ` is what the engine will inherit.

    `gpu` is planned for instead of the host's. Raises ConfigurationError where the certificate cannot be used.
    """
    certificate = load_certificate(settings.tls_cert, settings.tls_key)
    start = make_start(profile, settings, environ, gpu=gpu, survey=survey)
    served_name = settings.served_name or (DEMO_SERVED_NAME if start.demo else Path(start.model).name)
    run_dir = settings.state_dir.absolute() / f"run-{settings.port}"
    return Plan(
        **vars(start),
        served_name=served_name,
        argv=(
            *(start.hub.prefix if start.hub else ()),
            *(settings.engine, "serve", start.model, "--served-model-name", served_name),
            *(start.hub.pinned if start.hub else ()),
            *("--host", settings.host, "--port", str(settings.port)),
            *("--shutdown-timeout", str(settings.drain_s)),
            # servekit queries these every second; a line for each answer would bury the rest.
            *("--disable-access-log-for-endpoints", f"/health,/metrics,{EFFECTIVE_PATH},{COUNTERS_PATH}"),
            *guard_arguments(settings.media_domains, dict(start.arguments.structured_outputs_config)),
            *(certificate.arguments if certificate else ()),
            *render(start.values, without="structured-outputs-config"),  # guard_arguments writes that one
        ),
        launcher=_launcher(settings.engine, environ),
        environment=_environment(settings, start, environ)
        | guard_environment(run_dir / CONFIG_FILE_NAME, start.engine_patches),
        inherited=_inherited(passing(environ, settings.pass_env)),
        withheld=withheld((name for name in environ if not name.startswith("SERVEKIT_")), settings.pass_env),
        passed=settings.pass_env,
        host=settings.host,
        port=settings.port,
        observe_host=settings.observe_host,
        observe_port=settings.observe_port,
        start_s=settings.start_s,
        drain_s=settings.drain_s,
        patience=HangPolicy(settings.hang_s, settings.canary_s, settings.silent_s),
        notes=profile.notes,
        as_given=settings.as_given,
        certificate=certificate,
        prices={
            "gpu_hour_price": settings.gpu_hour_price,
            "kwh_price": settings.kwh_price,
            "kwh_co2_grams": settings.kwh_carbon_g,
        },
        guard=GuardSettings(
            state_dir=settings.state_dir,
            max_in_flight=settings.max_in_flight or default_max_in_flight(start.arguments.max_num_seqs),
            api_keys_file=settings.api_keys_file,
            no_auth=settings.no_auth,
            expose_without_auth=settings.expose_without_auth,
            host=settings.host,
            max_body_bytes=settings.max_body_mib * MIB,
            media_domains=settings.media_domains,
            cors_origins=settings.cors_origins,
            structured_outputs=settings.structured_outputs,
            settle_s=settings.drain_s / 2,
            request_log=settings.request_log,
            usage_days=settings.usage_days,
        ),
        run_dir=run_dir,
    )


def engine_environment(plan: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of the engine: what passes of `environ`, and what the plan adds."""
    kept = passing(environ, plan.passed)
    given = kept | dict(plan.environment)
    if "PYTHONPATH" in kept and "PYTHONPATH" in plan.environment:
        given["PYTHONPATH"] = os.pathsep.join((plan.environment["PYTHONPATH"], kept["PYTHONPATH"]))
    if "VLLM_PLUGINS" in kept:  # the operator's choice would leave servekit's own out
        given["VLLM_PLUGINS"] = f"{kept['VLLM_PLUGINS']},{PLUGIN}"
    return given


def connectable(host: str) -> str:
    """Return how a URL on this host names `host`: loopback for the wildcard addresses, brackets around IPv6."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - recognised, not bound
    return wildcard.get(host, f"[{host}]" if ":" in host else host)


def _environment(settings: Settings, start: Start, environ: Mapping[str, str]) -> dict[str, str]:
    added = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(settings.cache_dir / "vllm"),
        "TRITON_CACHE_DIR": str(settings.cache_dir / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(settings.cache_dir / "inductor"),
        "PYTHONUNBUFFERED": "1",
    }
    names_others = bool(start.values.keys() & _OTHER_MODELS)
    if names_others or start.hub is None or start.hub.whole:
        added["HF_HUB_OFFLINE"] = environ.get("HF_HUB_OFFLINE") or ("0" if names_others else "1")
    defaults = _CPU_ENVIRONMENT if start.target is Target.CPU else _CUDA_ENVIRONMENT
    if start.embeddings.memory == "host":
        added[embeddings.VARIABLE] = "host" if start.embeddings.required else "auto"
    if fp8_activations.DEVIATION in start.deviations:
        added |= fp8_activations.VARIABLES
    if start.target is Target.CUDA:
        added |= pinned(start.survey, environ)
        added |= {"VLLM_USE_FLASHINFER_SAMPLER": "1"} if start.flashinfer else {}
        defaults = {**defaults, "FLASHINFER_WORKSPACE_BASE": str(settings.cache_dir)}  # what it compiles is kept
    return added | {name: environ.get(name, value) for name, value in defaults.items()}


def _launcher(engine: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    python = python_of(engine, environ)
    return (python, early_core.__file__) if python else ()


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    prefixes = ("VLLM_", "HF_", "CUDA_", "NVIDIA_", "TORCH", "PYTORCH_", "NCCL_", "OMP_", "PYTHON", "LD_")
    names = sorted(name for name in environ if name.startswith(prefixes))
    return {name: "***" if any(mark in name for mark in _SECRET_MARKS) else environ[name] for name in names}
