"""Graceful shutdown: what is refused, what is finished, what is cut, and how it is counted."""

import json
import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

from servekit.errors import ExitCode
from servekit.serve.drain import count_connections, describe_requests, fewest
from servekit.serve.status import State
from tests.serve.conftest import Run
from tests.serve.test_supervisor import Eventually, Supervise, generate, running, until_ready


def test_connections_of_a_port(free_port: int) -> None:
    """Clients are counted only while they hold a connection."""
    with socket.create_server(("127.0.0.1", free_port)) as server:
        assert count_connections(free_port) == 0
        with socket.create_connection(("127.0.0.1", free_port)):
            accepted, _ = server.accept()
            assert count_connections(free_port) == 1
        with accepted:
            assert count_connections(free_port) == 0


def test_connections_that_the_kernel_does_not_report(tmp_path: Path) -> None:
    """Without the kernel's tables there is no count instead of a zero."""
    assert count_connections(80, proc=tmp_path) is None


@pytest.mark.parametrize(
    ("began_with", "connections", "count", "text"),
    [
        (8, 3, 3, "3 running requests"),
        (1, 5, 1, "1 running request"),
        (2, 0, 0, "no running requests"),
        (None, 4, 4, "4 running requests"),
        (8, None, 8, "8 running requests"),
        (None, None, None, "running requests"),
    ],
)
def test_remaining(began_with: int | None, connections: int | None, count: int | None, text: str) -> None:
    """The smaller count is logged, or the only known one, or no number if neither is known."""
    assert fewest(began_with, connections) == count
    assert describe_requests(count) == text


def test_drain_finishes_running_requests(supervise: Supervise, eventually: Eventually) -> None:
    """A request that runs when SIGTERM arrives is answered; readiness turns off immediately; the exit code is 0."""
    run = supervise("--slow-request-s", "4")
    until_ready(run, eventually)
    answers: list[int] = []
    request = threading.Thread(target=lambda: answers.append(generate(run)))
    request.start()
    eventually(lambda: running(run) == 1, what="the request")
    run.supervisor.request_stop("SIGTERM")
    eventually(lambda: run.status.state is State.DRAINING, what="draining")
    assert run.end() is ExitCode.STOPPED
    request.join()
    assert answers == [200]


def test_drain_that_runs_out(supervise: Supervise, eventually: Eventually) -> None:
    """When an engine cuts its requests at its own deadline and exits with 0, servekit returns 8."""
    run = supervise("--slow-request-s", "30", drain_s=1)
    until_ready(run, eventually)
    threading.Thread(target=generate, args=(run,), daemon=True).start()
    eventually(lambda: running(run) == 1, what="the request")
    run.supervisor.request_stop("SIGTERM")
    assert run.end() is ExitCode.DRAIN_RAN_OUT
    assert "the drain did not finish: 1 running request cut after 1 s" in run.status.reason


def test_second_signal_ends_the_drain(
    supervise: Supervise, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """On a second signal servekit does not wait: the running request is cut and the exit code is 8."""
    run = supervise("--slow-request-s", "30", drain_s=60)
    until_ready(run, eventually)
    threading.Thread(target=generate, args=(run,), daemon=True).start()
    eventually(lambda: running(run) == 1, what="the request")
    caplog.set_level(logging.INFO)
    run.supervisor.request_stop("SIGTERM")
    eventually(lambda: "SIGTERM: draining, 1 running request" in caplog.text, what="the engine's SIGTERM")
    run.supervisor.request_stop("SIGINT")
    assert run.end() is ExitCode.DRAIN_RAN_OUT
    assert run.status.reason == "SIGINT while draining: 1 running request cut"


def test_engine_that_ignores_sigterm_is_killed(
    supervise: Supervise, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the drain time and vLLM's margin are over, the engine is killed and the exit code is 8."""
    monkeypatch.setattr("servekit.serve.plan.STOP_MARGIN_S", 1)
    run = supervise("--ignore-sigterm", drain_s=0)
    until_ready(run, eventually)
    run.supervisor.request_stop("SIGTERM")
    assert run.end() is ExitCode.DRAIN_RAN_OUT
    assert "killed" in run.status.reason


def test_requests_in_the_moment_of_the_stop(supervise: Supervise, eventually: Eventually) -> None:
    """Clients that never pause get complete answers or are refused; none gets an empty answer."""
    run = supervise("--late-s", "0.2")
    until_ready(run, eventually)
    with clients(run, 8) as answers:
        eventually(lambda: answers["whole"] >= 8, what="answers")
        run.supervisor.request_stop("SIGTERM")
        assert run.end() is ExitCode.STOPPED
    assert set(answers) <= {"whole", "503", "no answer"}
    assert answers["503"]


def test_a_guard_that_does_not_answer(
    supervise: Supervise, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """If the guard does not answer, the stop waits for half of the drain time, and requests may get empty answers."""
    run = supervise("--late-s", "0.2", "--deaf-to-drain")
    until_ready(run, eventually)
    with clients(run, 8) as answers:
        eventually(lambda: answers["whole"] >= 8, what="answers")
        run.supervisor.request_stop("SIGTERM")
        assert run.end() is ExitCode.STOPPED
    assert "the guard does not answer" in caplog.text
    assert answers["empty"], "the fake engine does what vLLM does, or the test above shows nothing"


def test_second_signal_while_the_guard_is_asked(supervise: Supervise, eventually: Eventually) -> None:
    """On a second signal servekit does not wait for the guard's answer either."""
    run = supervise("--deaf-to-drain", drain_s=600)
    until_ready(run, eventually)
    run.supervisor.request_stop("SIGTERM")
    run.supervisor.request_stop("SIGTERM")
    assert run.end() is ExitCode.DRAIN_RAN_OUT
    assert run.status.reason == "SIGTERM while draining: running requests cut"


def test_engine_that_dies_while_the_guard_is_asked(supervise: Supervise, eventually: Eventually) -> None:
    """An engine that is killed before its SIGTERM ends the drain immediately."""
    run = supervise("--deaf-to-drain", drain_s=600)
    until_ready(run, eventually)
    run.supervisor.request_stop("SIGTERM")
    eventually(lambda: run.status.state is State.DRAINING, what="draining")
    assert run.status.engine_pid is not None
    os.kill(run.status.engine_pid, signal.SIGKILL)
    assert run.end(within_s=60) is ExitCode.DRAIN_RAN_OUT
    assert "killed by signal 9" in run.status.reason


@contextmanager
def clients(run: Run, count: int) -> Iterator[Counter[str]]:
    """Let clients send requests one after the other until the port is closed; yield a live counter of the results."""
    answers: Counter[str] = Counter()

    def ask() -> None:
        with urllib3.PoolManager(retries=False, timeout=20) as pool:
            while True:
                try:
                    answer = pool.request("POST", f"{run.plan.url}/v1/completions", json={"max_tokens": 5})
                except urllib3.exceptions.NewConnectionError:
                    return
                except urllib3.exceptions.HTTPError:
                    answers["no answer"] += 1
                    continue
                made = json.loads(answer.data).get("usage", {}).get("completion_tokens")
                answers["whole" if made == 5 else "empty" if answer.status == 200 else str(answer.status)] += 1

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
