"""How to provoke faults: functions that the tables combine."""

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable

from tests.faults.fault import Check, Provoke
from tests.faults.launch import Launch
from tests.harness.http import get


def send(*numbers: signal.Signals, at: str = "ready", after_s: float = 0) -> Provoke:
    """Send servekit signals once /readyz begins with `at`, each after the state has changed for the previous one."""

    def provoke(launch: Launch) -> None:
        launch.until_says(at)
        time.sleep(after_s)
        for number in numbers:
            launch.process.send_signal(number)
            if len(numbers) > 1 and number is numbers[0]:
                launch.until_says("draining", 60)

    return provoke


def send_with_requests(count: int, *numbers: signal.Signals, statuses: set[int], **fields: object) -> Provoke:
    """Send signals while `count` requests run; all must be answered with one of `statuses`, 0 for nothing."""

    def provoke(launch: Launch) -> Check:
        launch.until_says("ready")
        answers = launch.ask(count, **fields)
        launch.process.send_signal(numbers[0])
        launch.until_says("draining", 60)
        assert launch.observe("/livez")[0] == 200
        launch.until(lambda: refused(launch), "refusal of new connections", 60)
        for number in numbers[1:]:
            launch.process.send_signal(number)

        def check() -> None:
            end = time.monotonic() + 60
            while len(answers) < count and time.monotonic() < end:
                time.sleep(0.02)
            assert len(answers) == count
            assert set(answers) <= statuses

        return check

    return provoke


def request_when_ready(after_s: float = 0.0, count: int = 1) -> Provoke:
    """Send requests some seconds after the endpoint becomes ready."""

    def provoke(launch: Launch) -> None:
        launch.until_says("ready")
        time.sleep(after_s)
        launch.ask(count)

    return provoke


def kill(role: str, number: signal.Signals = signal.SIGKILL, *, at: str = "ready") -> Provoke:
    """Send a signal to one of the engine's processes as soon as /readyz begins with `at`."""

    def provoke(launch: Launch) -> None:
        launch.until_says(at)
        os.kill(launch.pid_of(role), number)

    return provoke


def stays_ready(during: Callable[[Launch], None], number: signal.Signals = signal.SIGTERM) -> Provoke:
    """Do something that is not a fault: readiness and liveness stay green throughout; then stop the endpoint."""

    def provoke(launch: Launch) -> None:
        launch.until_says("ready")
        during(launch)
        assert launch.probes.ready[-1] == ("ready", 200)
        assert launch.probes.live[-1] == ("ready", 200)
        launch.process.send_signal(number)

    return provoke


def wait(seconds: float) -> Callable[[Launch], None]:
    """Wait."""
    return lambda _: time.sleep(seconds)


def hold_connections(count: int) -> Callable[[Launch], None]:
    """Open connections to the observe port and send nothing or garbage on them, or reset them; none may be logged."""

    def hold(launch: Launch) -> None:
        port = launch.observe_port
        for number in range(count):
            idle = launch.things.enter_context(socket.create_connection(("127.0.0.1", port)))
            if number % 2:
                idle.sendall(b"\0\xff garbage \r\n\r\n")
            if number % 5 == 0:
                idle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                idle.close()
        time.sleep(0.5)
        assert not [line for line in launch.lines if "Traceback" in line or "Error" in line]

    return hold


def scrape_a_mute_engine(launch: Launch) -> None:
    """Scrape while the engine's own metrics never answer; the probes must still answer."""
    threads = [threading.Thread(target=get, args=(f"{launch.observe_url}/metrics", 20), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)


def refused(launch: Launch) -> bool:
    """Return whether the endpoint refuses new connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", launch.port), timeout=2):
        return False
    return True
