"""The life cycle of an endpoint with an engine that misbehaves on demand."""

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3

from servekit.errors import ExitCode
from servekit.serve.guard import InFlight
from servekit.serve.plan import Plan
from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.supervisor import Supervisor
from servekit.serve.watch.probe import EngineClient
from tests.harness.processes import is_running
from tests.serve.conftest import Run

Supervise = Callable[..., Run]
Eventually = Callable[..., None]


def until_ready(run: Run, eventually: Eventually) -> None:
    """Wait until the endpoint is ready."""
    eventually(lambda: run.status.state is not State.STARTING, what="the end of the start")
    assert run.status.state is State.READY, run.status.reason


def test_start_and_stop(supervise: Supervise, eventually: Eventually, caplog: pytest.LogCaptureFixture) -> None:
    """A healthy engine goes through its phases to ready, and SIGTERM ends it with 0."""
    caplog.set_level(logging.INFO)
    run = supervise("--load-s", "0.4")
    until_ready(run, eventually)
    phases = [phase for phase, _ in run.status.starts]
    assert phases == [Phase.IMPORTS, Phase.ENGINE, Phase.WEIGHTS, Phase.COMPILE, Phase.WARM_UP, Phase.VERIFY]
    run.supervisor.request_stop("SIGTERM")
    assert run.end() is ExitCode.STOPPED
    assert [change.state for change in run.status.transitions] == [
        *(State.STARTING, State.READY, State.DRAINING, State.STOPPED)
    ]
    assert "ready after" in caplog.text
    assert "Starting to load model" in caplog.text, "the engine's lines are passed on"


def test_sigterm_while_loading(supervise: Supervise, eventually: Eventually) -> None:
    """An engine that loses SIGTERM while it initialises is still ended, with 0."""
    run = supervise("--never-listen", "--lose-sigterm")
    eventually(lambda: run.status.phase is Phase.WARM_UP, what="the phase")
    pid = run.status.engine_pid
    run.supervisor.request_stop("SIGTERM")
    assert run.end(within_s=20) is ExitCode.STOPPED
    assert pid is not None
    assert not is_running(pid)


def test_asked_to_stop_before_the_start(supervise: Supervise) -> None:
    """A stop requested before the engine is started starts none."""
    run = supervise("--never-listen")
    run.supervisor.request_stop("SIGTERM")
    assert run.end() is ExitCode.STOPPED


def test_deadline_of_the_start(supervise: Supervise) -> None:
    """An engine that never listens is ended at the deadline, and the reason names the phase it was stuck in."""
    run = supervise("--never-listen", start_s=1)
    assert run.end() is ExitCode.START_FAILED
    assert "not ready within 1 s, last seen in phase warm-up" in run.status.reason


def test_deadline_of_a_phase(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase that does not end is named, long before the deadline of the whole start."""
    monkeypatch.setattr("servekit.serve.phases.PHASE_LIMITS_S", {Phase.WARM_UP: 1})
    run = supervise("--never-listen", start_s=600)
    assert run.end() is ExitCode.START_FAILED
    assert "phase warm-up did not end within 1 s" in run.status.reason


def test_what_the_kernel_reports_about_a_death(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill by the out-of-memory killer is reported in the kernel's words."""
    report = "Out of memory: Killed process 7 (VLLM::Worker) total-vm:9GB"
    monkeypatch.setattr("servekit.serve.supervisor.OomWatcher.read", lambda _self: report)
    run = supervise("--exit-after", "0.3")
    assert run.end() is ExitCode.ENGINE_DIED
    assert f"has died; the kernel reports: {report}" in run.status.reason


def test_failed_start_names_the_cause(supervise: Supervise, caplog: pytest.LogCaptureFixture) -> None:
    """The worker's own exception is the reason, with a remedy, and the last lines are repeated."""
    caplog.set_level(logging.INFO)
    run = supervise("--fail-with", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB")
    assert run.end() is ExitCode.START_FAILED
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB (lower max-model-len" in run.status.reason
    assert "Engine core initialization failed" not in run.status.reason
    assert "the engine's last" in caplog.text


def test_death_with_exit_code_zero(supervise: Supervise) -> None:
    """An engine that exits with 0 without a stop has died: 5, never 0."""
    run = supervise("--exit-after", "0.5")
    assert run.end() is ExitCode.ENGINE_DIED
    assert "exit code 0, which vLLM also returns when its EngineCore has died" in run.status.reason


def test_an_exception_long_ago_is_no_cause(
    supervise: Supervise, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that the engine survived is not the reason when it is killed later."""
    run = supervise("--complain", "--exit-after", "1")
    until_ready(run, eventually)
    generate(run)
    assert run.end() is ExitCode.ENGINE_DIED
    assert "a client's mistake" in run.status.reason
    monkeypatch.setattr("servekit.serve.supervisor._RECENT_S", 0.2)
    run = supervise("--complain", "--exit-after", "1", "--die-by", str(int(signal.SIGKILL)))
    until_ready(run, eventually)
    generate(run)
    assert run.end() is ExitCode.ENGINE_DIED
    assert "a client's mistake" not in run.status.reason


def test_an_exception_of_the_start_is_no_cause(supervise: Supervise) -> None:
    """What the engine survived before it was ready, however recently, is not the reason when it dies while serving."""
    run = supervise("--complain-loading", "--exit-after", "0.5", "--die-by", str(int(signal.SIGKILL)))
    assert run.end() is ExitCode.ENGINE_DIED
    assert run.status.reason.endswith("killed by signal 9 (SIGKILL): perhaps out of memory, or killed by hand")


def test_an_exception_of_the_start_is_the_cause_of_a_failed_start(supervise: Supervise) -> None:
    """Before the engine is ready, the same exception is the reason for the failed start."""
    run = supervise("--complain-loading", "--end-loading", "--exit-code", "1")
    assert run.end() is ExitCode.START_FAILED
    assert "RuntimeError: Found no NVIDIA driver on your system" in run.status.reason


def test_death_by_signal(supervise: Supervise, tmp_path: Path) -> None:
    """An engine killed by SIGKILL is reported as killed, and its leftover child is killed."""
    run = supervise("--exit-after", "0.5", "--die-by", str(int(signal.SIGKILL)), "--orphan", str(tmp_path / "pid"))
    assert run.end() is ExitCode.ENGINE_DIED
    assert "killed by signal 9 (SIGKILL): perhaps out of memory" in run.status.reason
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_health_that_turns_bad(supervise: Supervise, eventually: Eventually) -> None:
    """An engine that reports itself dead turns not ready, and is killed if it does not exit by itself."""
    run = supervise("--sick-after", "1")
    until_ready(run, eventually)
    eventually(lambda: run.status.state is State.FAILED, what="the failure")
    assert run.end() is ExitCode.ENGINE_DIED
    assert "killed after it had reported on /health that it was dead" in run.status.reason


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ("--wrong-name", ExitCode.CONTRACT_BROKEN, "/v1/models lists another, not m"),
        ("--no-token", ExitCode.START_FAILED, "the engine generated 0 tokens instead of 1"),
        (
            "--no-batch",
            ExitCode.START_FAILED,
            'the engine is up but does not answer: /v1/completions: HTTP 500: {"error": {"message": "no batch"}}',
        ),
        (
            "--runs-with-kv-cache-dtype=fp8_e5m2",
            ExitCode.CONTRACT_BROKEN,
            "the contract is broken: kv-cache-dtype: wanted auto, the engine runs with fp8_e5m2",
        ),
    ],
)
def test_never_ready_when_it_is_not_what_was_planned(
    supervise: Supervise, fault: str, code: ExitCode, reason: str
) -> None:
    """An engine that serves another model, or generates nothing, never becomes ready."""
    run = supervise(fault)
    assert run.end() is code
    assert run.status.reason == reason
    assert State.READY not in [change.state for change in run.status.transitions]


def test_warm_before_it_is_ready(supervise: Supervise, eventually: Eventually) -> None:
    """Before it is ready, an endpoint generates one token, two in JSON mode, and 16 for each of 3 and of 16 prompts."""
    run = supervise()
    until_ready(run, eventually)
    made = urllib3.request("GET", f"{run.plan.url}/metrics").data.decode()
    assert f'vllm:generation_tokens_total{{engine="0"}} {1 + 2 + 16 * (3 + 16)}.0' in made


def test_contract_is_recorded(supervise: Supervise, eventually: Eventually) -> None:
    """A ready endpoint has reported each item of the contract, and meets it."""
    run = supervise()
    until_ready(run, eventually)
    assert {item.name for item in run.status.contract} >= {"kv-cache-dtype", "quantization", "image limit"}
    assert all(item.met for item in run.status.contract)


def test_wedged_engine_with_a_request(supervise: Supervise, eventually: Eventually) -> None:
    """An engine with green health that makes no token is detected within the hang time and a tick: exit code 6."""
    run = supervise("--wedge-after", "0.5", hang_s=2)
    until_ready(run, eventually)
    time.sleep(0.6)
    threading.Thread(target=generate, args=(run,), daemon=True).start()
    eventually(lambda: running(run) == 1, what="the request")
    began = time.monotonic()
    assert run.end() is ExitCode.ENGINE_HUNG
    assert time.monotonic() - began > 1
    assert "made no progress for" in run.status.reason


@pytest.mark.parametrize("fault", ["stands still", "mutes its metrics"])
def test_mute_server(supervise: Supervise, eventually: Eventually, fault: str) -> None:
    """A server that answers nothing is detected within the hang time and a tick, however short it is."""
    run = supervise(*(["--mute-metrics-after", "0"] if fault == "mutes its metrics" else []), hang_s=2)
    until_ready(run, eventually)
    began = time.monotonic()
    if fault == "stands still":
        assert run.status.engine_pid is not None
        os.kill(run.status.engine_pid, signal.SIGSTOP)
    assert run.end() is ExitCode.ENGINE_HUNG
    assert time.monotonic() - began > 1


def test_a_server_that_stands_still_for_a_while(
    supervise: Supervise, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that does not answer turns not ready but stays live, and is ready again as soon as it answers."""
    run = supervise(silent_s=1)
    until_ready(run, eventually)
    pid = run.status.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: run.status.state is State.SILENT, what="silence")
    assert run.status.reason == "the engine's server has not answered for 1 s"
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: run.status.state is State.READY, what="readiness")
    assert run.status.reason.startswith("the engine's server answers again, after ")
    run.supervisor.request_stop("SIGTERM")
    assert run.end() is ExitCode.STOPPED
    assert "not ready: the engine's server has not answered" in caplog.text


def test_a_silent_server_that_hangs(supervise: Supervise, eventually: Eventually) -> None:
    """Silence only turns readiness off; the hang time ends the engine."""
    run = supervise(silent_s=0.5, hang_s=2)
    until_ready(run, eventually)
    assert run.status.engine_pid is not None
    os.kill(run.status.engine_pid, signal.SIGSTOP)
    assert run.end() is ExitCode.ENGINE_HUNG
    states = [change.state for change in run.status.transitions]
    assert states == [State.STARTING, State.READY, State.SILENT, State.FAILED, State.FAILED]


def test_late_health_is_no_silence(supervise: Supervise, eventually: Eventually) -> None:
    """A server that answers late, but within the time, stays ready."""
    run = supervise("--slow-health-s", "0.7", silent_s=1.5)
    until_ready(run, eventually)
    time.sleep(4)
    assert [change.state for change in run.status.transitions] == [State.STARTING, State.READY]


@pytest.mark.parametrize("hangs", [False, True])
def test_what_was_in_flight_at_the_end(supervise: Supervise, caplog: pytest.LogCaptureFixture, *, hangs: bool) -> None:
    """On a death or a hang the log names the requests in flight, then ends with a reason that has the GPU's report."""
    flight = InFlight(time.monotonic(), "req-7", "/v1/completions", 31, "prompt(4)")
    faults = ("--mute-metrics-after", "0") if hangs else ("--exit-after", "0.3")
    run = supervise(*faults, hang_s=1, in_flight=lambda: [flight], gpu_errors=lambda: "Xid 79 on GPU-1")
    assert run.end() is (ExitCode.ENGINE_HUNG if hangs else ExitCode.ENGINE_DIED)
    assert "; the GPU reports: Xid 79 on GPU-1" in run.status.reason
    lines = caplog.messages
    place = lines.index("in flight: 1 request, the latest first:")
    assert lines[place + 1].startswith("  req-7 /v1/completions, 31 bytes, for ")
    assert place == len(lines) - 3


def test_a_slow_request_is_no_hang(supervise: Supervise, eventually: Eventually) -> None:
    """A request that makes no token for longer than the hang time is not a hang while a canary still gets its token."""
    run = supervise("--slow-request-s", "4", hang_s=1.5)
    until_ready(run, eventually)
    assert generate(run) == 200
    assert run.status.state is State.READY


def test_flood_of_output(supervise: Supervise, eventually: Eventually) -> None:
    """servekit reads the lines of an engine that floods its output, and the endpoint serves."""
    run = supervise("--flood", "2000")
    until_ready(run, eventually)
    run.supervisor.request_stop("SIGTERM")
    assert run.end() is ExitCode.STOPPED


def test_missing_engine(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing engine program is a failed start that names it."""
    monkeypatch.setattr("tests.serve.conftest.sys.executable", "/nowhere/vllm")
    run = supervise()
    assert run.end() is ExitCode.START_FAILED
    assert "cannot start" in run.status.reason


def generate(run: Run) -> int:
    """Request five tokens and return the HTTP status; 0 if there was no answer."""
    body = {"model": "m", "prompt": "1", "max_tokens": 5}
    try:
        return int(
            urllib3.request("POST", f"{run.plan.url}/v1/completions", json=body, retries=False, timeout=60).status
        )
    except urllib3.exceptions.HTTPError:
        return 0


def running(run: Run) -> int:
    """Return the number of requests in the engine."""
    counters = urllib3.request("GET", f"{run.plan.url}/_servekit/counters").json()
    return int(counters["in_flight"])


def test_a_thread_that_ends_before_the_start(make_plan: Callable[..., Plan]) -> None:
    """A thread that ends while servekit still prepares is a bug too, not a request to stop."""
    plan, store = make_plan("--never-listen"), StatusStore()
    supervisor = Supervisor(plan, store, EngineClient(plan.url), {})
    error, thread = ZeroDivisionError("division by zero"), threading.Thread(name="gpu-errors")
    supervisor.report_thread(threading.ExceptHookArgs((type(error), error, None, thread)))
    assert supervisor.run() is ExitCode.BUG
    assert "its thread gpu-errors has ended: ZeroDivisionError" in store.read().reason
    assert store.read().engine_pid is None


def test_a_thread_that_ends_unasked(
    supervise: Supervise, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the watch breaks, servekit exits with 70 and the reason, so that no engine runs without hang detection."""
    run = supervise()
    monkeypatch.setattr(threading, "excepthook", run.supervisor.report_thread)
    until_ready(run, eventually)
    pid = run.status.engine_pid
    monkeypatch.setattr(EngineClient, "health", lambda *_, **_named: 1 / 0)
    assert run.end() is ExitCode.BUG
    assert re.search("its thread (watch|silence-query) has ended: ZeroDivisionError", run.status.reason)
    assert "Traceback" in caplog.text
    assert pid is not None
    assert not is_running(pid)
