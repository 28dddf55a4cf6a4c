"""One run of the endpoint: the rooms put together, from the plan to the exit code."""

import logging
import os
from collections.abc import Callable

from servekit import ENGINE_VERSION, __version__
from servekit.demo.build import ensure_demo_model
from servekit.errors import ConfigurationError, ExitCode, Mistake, PreflightError, ServekitError
from servekit.nvml import GpuErrors
from servekit.observe.endpoints import Endpoints, Server
from servekit.observe.gpu_errors import GpuErrorCollector
from servekit.observe.gpu_metrics import GpuCollector
from servekit.observe.guard_metrics import GuardCollector
from servekit.observe.metrics import StatusCollector, make_registry
from servekit.preflight.examine import Start, examine
from servekit.preflight.findings import Severity, render
from servekit.preflight.host.gpus import survey_gpus, visible_gpus
from servekit.serve.guard import (
    FLIGHT_FILE_NAME,
    Guard,
    GuardSettings,
    default_max_in_flight,
    prepare_guard,
    read_flights,
)
from servekit.serve.plan import Plan, engine_environment, find_engine_patches, run_dir
from servekit.serve.run_lock import alone_in
from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.supervisor import Supervisor
from servekit.serve.watch.probe import EngineClient
from servekit.settings import Settings, Target

_MIB = 1024**2

logger = logging.getLogger(__name__)


def serve_plan(plan: Plan, settings: Settings, *, on_stop_signal: Callable[[Callable[[str], None]], None]) -> ExitCode:
    """Serve `plan` until its end and return the exit code.

    `on_stop_signal` is given the function to call when the process is asked to stop. Raises ConfigurationError where
    a key, a folder or a limit is wrong.
    """
    _make_folders(settings)
    with alone_in(run_dir(settings)):
        return _serve_alone(plan, settings, on_stop_signal)


def _serve_alone(plan: Plan, settings: Settings, on_stop_signal: Callable[[Callable[[str], None]], None]) -> ExitCode:
    guard = prepare_guard(guard_settings(plan, settings), run_dir(settings))
    board = StatusStore()
    fingerprint = plan.certificate.fingerprint if plan.certificate else None
    client = EngineClient(plan.url, guard.headers, fingerprint=fingerprint)
    survey = survey_gpus() if plan.target is Target.CUDA else None
    gpus = visible_gpus(survey) if survey else ()
    gpu_errors = GpuErrors([gpu.uuid for gpu in gpus])
    flight_file = run_dir(settings) / FLIGHT_FILE_NAME
    supervisor = Supervisor(
        plan,
        board,
        client,
        engine_environment(plan, os.environ),
        in_flight=lambda: read_flights(flight_file),
        gpu_errors=gpu_errors.describe,
    )
    on_stop_signal(supervisor.ask_to_stop)
    board.see_phase(Phase.PREFLIGHT)
    board.enter(State.STARTING, "checking and preparing")
    collectors = [StatusCollector(plan, board), GuardCollector(client, supervisor)]
    if plan.target is Target.CUDA:
        collectors += [GpuCollector(), GpuErrorCollector(gpus, gpu_errors)]
        gpu_errors.start()
    registry = make_registry(*collectors)
    with Server(Endpoints(plan, board, registry, client.metrics), plan.observe_host, plan.observe_port) as server:
        _introduce(plan, guard, server.url)
        try:
            _prepare(plan, settings)
        except ServekitError as error:
            board.enter(State.FAILED, str(error), exit_code=error.exit_code)
            logger.error("%s (exit code %d)", error, error.exit_code)  # noqa: TRY400 - meant for the user, not a bug
            return error.exit_code
        return supervisor.run()


def guard_settings(plan: Plan, settings: Settings) -> GuardSettings:
    """Return what the operator decided about the guard, the profile's share filled in."""
    sequences = plan.arguments.get("max-num-seqs")
    return GuardSettings(
        state_dir=settings.state_dir,
        max_in_flight=settings.max_in_flight
        or default_max_in_flight(sequences if isinstance(sequences, int) else 1024),
        api_keys_file=settings.api_keys_file,
        no_auth=settings.no_auth,
        expose_without_auth=settings.expose_without_auth,
        host=settings.host,
        max_body_bytes=settings.max_body_mib * _MIB,
        media_domains=settings.media_domains,
        structured_outputs=settings.structured_outputs,
        settle_s=plan.settle_s,
        engine_patches=find_engine_patches(settings),
    )


def start_of(plan: Plan, settings: Settings) -> Start:
    """Return the start that `plan` is, as preflight sees it."""
    return Start(
        target=plan.target.value,
        model=plan.model,
        arguments=plan.arguments,
        addresses={"--port": (plan.host, plan.port)},
        cache_dir=settings.cache_dir,
        engine=plan.argv[0],
        engine_patches=find_engine_patches(settings),
        kv_space_gib=int(plan.environment.get("VLLM_CPU_KVCACHE_SPACE", "1")),
    )


def _make_folders(settings: Settings) -> None:
    mistakes = []
    for folder in (settings.state_dir, settings.cache_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot be made: {error.strerror}"
            mistakes.append(Mistake(where=str(folder), message=message, remedy="choose another folder"))
    if mistakes:
        raise ConfigurationError(mistakes)


def _introduce(plan: Plan, guard: Guard, observe_url: str) -> None:
    logger.info("servekit %s, vLLM %s, target %s", __version__, ENGINE_VERSION, plan.target)
    logger.info("profile %s, model %s as %s", plan.profile, plan.model, plan.served_name)
    logger.info("health, status and metrics on %s", observe_url)
    if guard.key_file is None:
        logger.warning("no key is asked for: whoever reaches %s:%d may use the model", plan.host, plan.port)
    else:
        made = "a key was made for you" if guard.key_generated else "clients' keys"
        logger.info("%s: %s (servekit key --show)", made, guard.key_file)
    if plan.withheld:
        reasons = "; ".join(f"{name} ({why})" for name, why in plan.withheld.items())
        logger.warning("withheld from the engine, see SERVEKIT_PASS_ENV: %s", reasons)
    for deviation in plan.deviations:
        logger.warning(
            "deviation from the contract: %s is %s instead of %s: %s",
            *(deviation.key, deviation.used, deviation.wanted, deviation.reason),
        )
    for adjustment in plan.adjustments:
        logger.info("adjusted: %s is %s: %s", adjustment.key, adjustment.used, adjustment.reason)


def _prepare(plan: Plan, settings: Settings) -> None:
    """Build the demo checkpoint where it is wanted, and examine everything before the start.

    Raises PreflightError with the findings that forbid it.
    """
    if plan.demo:
        ensure_demo_model(settings.cache_dir, progress=logger.info)
    examination = examine(start_of(plan, settings), skip=settings.skip)
    for finding in examination.skipped:
        logger.warning("preflight: passed over, as asked: %s", finding)
    for finding in examination.findings:
        if finding.severity is not Severity.ERROR:
            level = logging.WARNING if finding.severity is Severity.WARNING else logging.INFO
            logger.log(level, "preflight: %s", str(finding).partition(" ")[2])
    if examination.failed:
        raise PreflightError(render(tuple(f for f in examination.findings if f.severity is Severity.ERROR)))
    if examination.memory:
        memory = examination.memory
        logger.info(
            "memory plan: pool of %s tokens, %.2f requests of %s tokens at once",
            *(f"{memory.pool_tokens:,}", memory.full_requests, f"{memory.max_model_len:,}"),
        )
