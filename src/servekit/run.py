"""One run of the endpoint, from the plan to the exit code."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from servekit import ENGINE_VERSION, __version__
from servekit.demo.build import ensure_demo_model
from servekit.errors import ExitCode, Finding, PreflightError, ServekitError
from servekit.file_trouble import make_folder
from servekit.logs import LEVELS
from servekit.observe.endpoints import Endpoints, Server
from servekit.observe.gpu_errors import GpuErrors
from servekit.observe.gpu_metrics import gpu_families
from servekit.observe.guard_metrics import guard_families
from servekit.observe.metrics import make_registry, status_families
from servekit.observe.usage_metrics import usage_families
from servekit.preflight.examine import examine
from servekit.preflight.findings import Severity
from servekit.preflight.host.gpus import visible_gpus
from servekit.preflight.hub.hub_model import find_hub_model
from servekit.serve.books.audit import Audit, KeyChanges
from servekit.serve.books.bookkeeper import Bookkeeper
from servekit.serve.guard import CONFIG_FILE_NAME, FLIGHT_FILE_NAME, Guard, limit_penalties, prepare_guard, read_flights
from servekit.serve.notify import notify
from servekit.serve.plan import Plan, engine_environment
from servekit.serve.run_lock import alone_in
from servekit.serve.start_check import check_start
from servekit.serve.status import Phase, State, Status, StatusStore
from servekit.serve.supervisor import Supervisor
from servekit.serve.watch.probe import EngineClient

logger = logging.getLogger(__name__)


def serve_plan(plan: Plan, *, on_stop_signal: Callable[[Callable[[str], None]], None]) -> ExitCode:
    """Serve `plan` until its end and return the exit code.

    `on_stop_signal` receives the function that a stop signal must call. Raises ConfigurationError if a key, a folder or
    a limit is wrong.
    """
    check_start(plan)
    make_folder(plan.guard.state_dir)
    with alone_in(plan.run_dir):
        return _serve_alone(plan, on_stop_signal)


def _serve_alone(plan: Plan, on_stop_signal: Callable[[Callable[[str], None]], None]) -> ExitCode:
    audit = Audit(plan.guard.state_dir)
    books = Bookkeeper(plan.run_dir, plan.guard, audit, KeyChanges(plan.guard.key_file, audit))
    books.take_over()
    try:
        return _serve_with(plan, on_stop_signal, audit, books)
    finally:
        books.stop()


def _serve_with(
    plan: Plan, on_stop_signal: Callable[[Callable[[str], None]], None], audit: Audit, books: Bookkeeper
) -> ExitCode:
    guard = prepare_guard(plan.guard, plan.run_dir)
    told: set[Finding] = set()

    def announce(status: Status) -> None:
        notify(status)
        audit.take(status)

    store = StatusStore(on_change=announce)
    store.record(commit=plan.hub.commit if plan.hub and plan.hub.whole else "")
    client = EngineClient(
        plan.url, guard.headers, fingerprint=plan.certificate.fingerprint if plan.certificate else None
    )
    gpus = visible_gpus(plan.survey) if plan.survey else ()
    gpu_errors = GpuErrors([gpu.uuid for gpu in gpus])
    supervisor = Supervisor(
        plan,
        store,
        client,
        engine_environment(plan, os.environ),
        in_flight=lambda: read_flights(plan.run_dir / FLIGHT_FILE_NAME),
        gpu_errors=gpu_errors.describe,
        check_download=lambda: _check_downloaded(plan, told),
    )
    on_stop_signal(supervisor.request_stop)
    threading.excepthook = supervisor.report_thread
    store.enter_phase(Phase.PREFLIGHT)
    store.enter(State.STARTING, "checking and preparing")
    gpu_errors.start()
    books.start()
    for deviation in plan.deviations:
        audit.write("deviation", key=deviation.key, used=deviation.used, reason=deviation.reason)
    registry = make_registry(
        lambda: status_families(plan, store.read(), time.monotonic()),
        lambda: guard_families(client, supervisor.watch.canary_tokens),
        lambda: gpu_families(gpus, gpu_errors.xids()),
        lambda: usage_families(books, plan.prices),
    )
    with Server(Endpoints(plan, store, registry, client.metrics), plan.observe_host, plan.observe_port) as server:
        _log_plan(plan, guard, server.url)
        try:
            _prepare(plan, told)
        except ServekitError as error:
            store.enter(State.FAILED, str(error), exit_code=error.exit_code)
            logger.error("%s (exit code %d)", _log_error(error), error.exit_code)  # noqa: TRY400
            return error.exit_code
        return supervisor.run()


def _log_plan(plan: Plan, guard: Guard, observe_url: str) -> None:
    logger.info("servekit %s, vLLM %s, target %s", __version__, ENGINE_VERSION, plan.target)
    commit = f" at commit {plan.hub.commit}" if plan.hub and plan.hub.whole else ""
    logger.info("profile %s, model %s%s as %s", plan.profile, plan.model, commit, plan.served_name)
    logger.info("health, status and metrics on %s", observe_url)
    if guard.key_file is None:
        logger.warning("authentication is off: anyone who can reach %s:%d can use the model", plan.host, plan.port)
    else:
        what = "generated an API key" if guard.key_generated else "clients' keys"
        logger.info("%s: %s (servekit key --show)", what, guard.key_file)
    if plan.withheld:
        logger.warning(
            "withheld from the engine, see SERVEKIT_PASS_ENV: %s",
            "; ".join(f"{name} ({why})" for name, why in plan.withheld.items()),
        )
    for deviation in plan.deviations:
        logger.warning(
            "deviation from the contract: %s is %s instead of %s: %s",
            *(deviation.key, deviation.used, deviation.wanted, deviation.reason),
        )
    for finding in plan.notes:
        logger.info(finding)
    for adjustment in plan.adjustments:
        logger.info("adjusted: %s is %s: %s", adjustment.key, adjustment.used, adjustment.reason)


def _prepare(plan: Plan, told: set[Finding]) -> None:
    """Build the demo checkpoint if the plan uses it, then check everything before the start.

    Raises PreflightError with the findings that stop the start.
    """
    if plan.demo:
        ensure_demo_model(plan.cache_dir, progress=logger.info)
    _check(plan, told)
    make_folder(plan.cache_dir)


def _check_downloaded(plan: Plan, told: set[Finding]) -> str:
    """Check the model that is in the cache now; return why it cannot be served, if it cannot."""
    hub = find_hub_model(plan.model, plan.hub.revision if plan.hub else "", os.environ, engine="")
    try:
        _check(replace(plan, addresses={}, engine="", hub=hub and replace(hub, whole=True)), told)
    except PreflightError as error:
        return _log_error(error)
    return ""


def _check(plan: Plan, told: set[Finding]) -> None:
    """Log what preflight finds and has not `told` yet, and give the guard the bound from the memory plan.

    Raises PreflightError with what stops the start.
    """
    examination = examine(plan)
    for finding in examination.skipped:
        logger.warning("skipped (--skip): %s", finding)
    findings = [plan.as_given(finding) for finding in examination.findings]
    for finding in findings:
        if finding.severity is not Severity.ERROR and finding not in told:
            logger.log(LEVELS[finding.severity], finding)
    told.update(findings)
    if examination.failed:
        raise PreflightError(finding for finding in findings if finding.severity is Severity.ERROR)
    if memory := examination.memory:
        logger.info(
            "memory plan: pool of %s tokens, %.2f requests of %s tokens at once",
            *(f"{memory.pool_tokens:,}", memory.full_requests, f"{memory.max_model_len:,}"),
        )
        if memory.shortages:
            limit_penalties(plan.run_dir / CONFIG_FILE_NAME, memory.shortages.penalised_tokens)


def _log_error(error: ServekitError) -> str:
    """Log each finding; return their names."""
    for finding in error.findings:
        logger.error(finding)
    return ", ".join(finding.name or finding.message for finding in error.findings)
