"""Everything `servekit serve` will do, decided before anything is done: argv, environment, addresses, deadlines."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from servekit.preflight.host.gpus import SurveyGpus, survey_gpus
from servekit.profile import CONTRACT, Deviation, Profile, Value, render
from servekit.serve.engine.environment import passing, withheld
from servekit.serve.guard import (
    CONFIG_FILE_NAME,
    COUNTERS_PATH,
    EFFECTIVE_PATH,
    guard_arguments,
    guard_environment,
)
from servekit.serve.guard.inside.servekit_guard.core.worker import PLUGIN
from servekit.serve.tls import Certificate, load_certificate
from servekit.serve.watch.watcher import HangPolicy
from servekit.settings import Settings, Target

DEFAULT_MODEL = "salve-mundii/gemma4-E4B-opt"
DEMO_SERVED_NAME = "gemma4-demo"

STOP_MARGIN_S = 10
"""What servekit adds to vLLM's own shutdown timeout before it kills: vLLM tidies up for some seconds."""

# CPU build of vLLM 0.20.2. Its FP8 cache does not work with chunked prefill or prefix caching and falls back silently
# without them (v1/attention/backends/cpu_attn.py), hence the deviation; the others only make the start quick.
_CPU_DEVIATION = Deviation(
    key="kv-cache-dtype",
    wanted=CONTRACT["kv-cache-dtype"],
    used="auto",
    reason="the CPU engine has no FP8 KV cache with chunked prefill and prefix caching",
)
_CPU_ARGUMENTS: Mapping[str, tuple[Value, str]] = {
    "enforce-eager": (True, "no compilation: the CPU engine is for trying out, its start should be quick"),
    "skip-mm-profiling": (True, "no encoder profiling run at the start"),
}
_CPU_ENVIRONMENT = {
    # Whole GiB of KV cache. Unset, vLLM takes gpu-memory-utilization as a share of a NUMA node and refuses 0.9 of it.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # With enforce-eager nothing is compiled; without dynamo no C++ compiler is looked for either.
    "TORCHDYNAMO_DISABLE": "1",
}
_CUDA_ENVIRONMENT = {
    # Requests with logprobs or penalties take gigabytes that no start rehearses. Beside a full cache there is room for
    # them while free memory is not in pieces: 1,000 rows with logprobs ended an engine with an L4's memory without it.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
_STRUCTURED = "structured-outputs-config"
_SECRET_MARKS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


@dataclass(frozen=True)
class Adjustment:
    """A value outside the contract that the target changes or adds."""

    key: str
    used: Value
    reason: str


@dataclass(frozen=True)
class Plan:
    """What will be started, where it listens and how long each step may take (seconds)."""

    target: Target
    profile: Path
    model: str
    demo: bool
    """Whether `model` is the embedded checkpoint, to be built where it does not exist yet."""
    served_name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """What is added to the environment servekit itself was started with."""
    host: str
    port: int
    observe_host: str
    observe_port: int
    start_s: float
    drain_s: int
    patience: HangPolicy
    authentication: bool
    """Whether clients need a key."""
    certificate: Certificate | None
    """For HTTPS by the engine's own server; None: plain HTTP."""
    arguments: Mapping[str, Value]
    """The engine's arguments by their dashed names, deviations and adjustments applied."""
    deviations: tuple[Deviation, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    inherited: Mapping[str, str] = field(default_factory=dict)
    """The variables of Python, vLLM, Hugging Face, CUDA and torch that pass through to the engine, secrets masked."""
    withheld: Mapping[str, str] = field(default_factory=dict)
    """The names of variables that do not, with the reasons (`environment.py`)."""
    passed: tuple[str, ...] = ()
    """The names of those that the operator lets in all the same."""

    @property
    def url(self) -> str:
        """Where clients on this host reach the endpoint."""
        return f"{'https' if self.certificate else 'http'}://{connectable(self.host)}:{self.port}"

    @property
    def observe_url(self) -> str:
        """Where probes on this host reach servekit's own server."""
        return f"http://{connectable(self.observe_host)}:{self.observe_port}"

    @property
    def contract(self) -> dict[str, Value]:
        """The contract's values as this run holds them, deviations applied; None where nothing is wanted."""
        return {key: self.arguments.get(key) for key in CONTRACT}

    @property
    def settle_s(self) -> float:
        """Seconds of the drain in which requests let in just before may reach EngineCore, before its SIGTERM.

        EngineCore takes new ones between two steps: on a busy GPU that is tens of milliseconds, but its first large
        batch after a start with empty caches was seen to take ten seconds, most of them compiling.
        """
        return self.drain_s / 2

    @property
    def stop_s(self) -> int:
        """Seconds after SIGTERM at which servekit kills what still runs; a container's stop grace must be longer."""
        return self.drain_s + STOP_MARGIN_S

    def describe(self) -> dict[str, object]:
        """Return the plan as values that JSON can hold."""
        return {
            "target": self.target.value,
            "profile": str(self.profile),
            "model": self.model,
            "served_name": self.served_name,
            "argv": list(self.argv),
            "environment": dict(self.environment),
            "inherited_environment": dict(self.inherited),
            "withheld_environment": dict(self.withheld),
            "addresses": {
                "endpoint": f"{self.host}:{self.port}",
                "observe": f"{self.observe_host}:{self.observe_port}",
            },
            "authentication": self.authentication,
            "deadlines_s": {
                "start": self.start_s,
                "hang": self.patience.hang_s,
                "canary": self.patience.canary_s,
                "silent": self.patience.silent_s,
                "drain": self.drain_s,
                "stop": self.stop_s,
            },
            "contract": self.contract,
            "deviations": [
                {"key": d.key, "wanted": d.wanted, "used": d.used, "reason": d.reason} for d in self.deviations
            ],
            "adjustments": [{"key": a.key, "used": a.used, "reason": a.reason} for a in self.adjustments],
        }


def build_plan(
    profile: Profile, settings: Settings, *, target: Target, demo_model: Path, environ: Mapping[str, str]
) -> Plan:
    """Return the plan for `profile` under `settings` on `target` (not auto).

    `demo_model` is the folder of the embedded checkpoint; `environ` what the engine will inherit.
    Raises ConfigurationError where the certificate cannot be used.
    """
    certificate = load_certificate(settings.tls_cert, settings.tls_key)
    if target is Target.CPU and profile.get(_CPU_DEVIATION.key) != _CPU_DEVIATION.used:
        profile = profile.deviating(_CPU_DEVIATION)
    adjustments = _adjustments(profile) if target is Target.CPU else ()
    arguments = {**profile.arguments, **{each.key: each.used for each in adjustments}}
    demo = not settings.model and target is Target.CPU
    model = settings.model or (str(demo_model) if demo else DEFAULT_MODEL)
    served_name = settings.served_name or (DEMO_SERVED_NAME if demo else Path(model).name)
    return Plan(
        target=target,
        profile=profile.path,
        model=model,
        demo=demo,
        served_name=served_name,
        argv=(
            *(settings.engine, "serve", model, "--served-model-name", served_name),
            *("--host", settings.host, "--port", str(settings.port)),
            *("--shutdown-timeout", str(settings.drain_s)),
            # servekit asks these every second; a line for each answer would bury the rest.
            *("--disable-access-log-for-endpoints", f"/health,/metrics,{EFFECTIVE_PATH},{COUNTERS_PATH}"),
            *guard_arguments(settings.media_domains, arguments.get(_STRUCTURED)),
            *(certificate.arguments if certificate else ()),
            *render({key: value for key, value in arguments.items() if key != _STRUCTURED}),
        ),
        environment=_environment(settings, target, local=demo or Path(model).is_dir(), environ=environ)
        | guard_environment(run_dir(settings) / CONFIG_FILE_NAME, find_engine_patches(settings)),
        host=settings.host,
        port=settings.port,
        observe_host=settings.observe_host,
        observe_port=settings.observe_port,
        start_s=settings.start_s,
        drain_s=settings.drain_s,
        authentication=not settings.no_auth,
        certificate=certificate,
        patience=HangPolicy(settings.hang_s, settings.canary_s, settings.silent_s),
        arguments=arguments,
        deviations=profile.deviations,
        adjustments=adjustments,
        inherited=_inherited(passing(environ, settings.pass_env)),
        withheld=withheld((name for name in environ if not name.startswith("SERVEKIT_")), settings.pass_env),
        passed=settings.pass_env,
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


def find_engine_patches(settings: Settings) -> Path | None:
    """Return the folder of packages that go before the engine's own: the one set, or the one beside the engine."""
    if settings.engine_patches is not None:
        return settings.engine_patches.absolute()
    program = shutil.which(settings.engine)
    if program is None:
        return None
    environment = Path(program).absolute().parents[1]  # as .venv-engine is of .venv-engine/bin/vllm
    beside = environment.with_name(f"{environment.name}-patches")
    return beside if beside.is_dir() else None


def run_dir(settings: Settings) -> Path:
    """Return the folder of what belongs to one run: two endpoints of one user on one host differ in their port."""
    return settings.state_dir.absolute() / f"run-{settings.port}"


def detect_target(settings: Settings, survey: SurveyGpus = survey_gpus) -> Target:
    """Return the target to serve on; `auto` is cuda where NVML answers, even if it sees no GPU.

    A driver without a GPU is a fault for preflight to tell, not a reason to serve on the CPU in silence.
    """
    if settings.target is not Target.AUTO:
        return settings.target
    return Target.CPU if survey() is None else Target.CUDA


def connectable(host: str) -> str:
    """Return how a URL on this host names `host`: loopback for the wildcard addresses, brackets around IPv6."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - recognised, not bound
    return wildcard.get(host, f"[{host}]" if ":" in host else host)


def _environment(settings: Settings, target: Target, *, local: bool, environ: Mapping[str, str]) -> dict[str, str]:
    added = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(settings.cache_dir / "vllm"),
        "TRITON_CACHE_DIR": str(settings.cache_dir / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(settings.cache_dir / "inductor"),
        "PYTHONUNBUFFERED": "1",
    }
    if local:
        added["HF_HUB_OFFLINE"] = "1"
    defaults = _CPU_ENVIRONMENT if target is Target.CPU else _CUDA_ENVIRONMENT
    return added | {name: environ.get(name, value) for name, value in defaults.items()}


def _adjustments(profile: Profile) -> tuple[Adjustment, ...]:
    return tuple(
        Adjustment(key, used, reason) for key, (used, reason) in _CPU_ARGUMENTS.items() if key not in profile.arguments
    )


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    prefixes = ("VLLM_", "HF_", "CUDA_", "NVIDIA_", "TORCH", "PYTORCH_", "NCCL_", "OMP_", "PYTHON", "LD_")
    names = sorted(name for name in environ if name.startswith(prefixes))
    return {name: "***" if any(mark in name for mark in _SECRET_MARKS) else environ[name] for name in names}
