"""Faults of a running endpoint: the engine dies or hangs, or only appears to."""

import os
import signal

from tests.faults.fault import BROKEN, DRAINED, READY, SILENT, STARTING, Check, Fault
from tests.faults.launch import Launch
from tests.faults.provoke import (
    hold_connections,
    kill,
    request_when_ready,
    scrape_a_mute_engine,
    send,
    stays_ready,
    wait,
)

_HANG = ("--hang-s", "1.5")
_DIED = "the engine ended while serving, "


def ask_slowly(launch: Launch) -> None:
    """Run two requests that take longer than the hang time."""
    answers = launch.ask(2)
    launch.until(lambda: answers == [200, 200], "answers", 15)


def kill_servekit(launch: Launch) -> None:
    """Kill servekit itself."""
    launch.until_says("ready")
    launch.process.send_signal(signal.SIGKILL)


def break_the_watch(launch: Launch) -> None:
    """Make the thread that watches a ready engine raise: Python imports this file when servekit starts."""
    (launch.folder / "sitecustomize.py").write_text(
        "from servekit.serve.watch.watcher import Watch\n\n\n"
        "def _watch_serving(self):\n    self._stopped.wait(1)\n    raise RuntimeError('provoked')\n\n\n"
        "Watch._watch_serving = _watch_serving\n"
    )
    found = launch.environ.get("PYTHONPATH")
    launch.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(launch.folder), found]))


def hang_up_the_log(launch: Launch) -> None:
    """Close the pipe of servekit's log after the first line, as `| head -1` does."""
    launch.lines_wanted = 1


def stand_still(launch: Launch) -> None:
    """Stop the engine's server until the endpoint turns not ready, then continue it."""
    launch.until_says("ready")
    server = launch.pid_of("server")
    os.kill(server, signal.SIGSTOP)
    launch.until_says("silent", 5)
    os.kill(server, signal.SIGCONT)
    launch.until(lambda: launch.probes.ready[-1] == ("ready", 200), "readiness again", 5)
    launch.process.send_signal(signal.SIGTERM)


def stop_soon(launch: Launch) -> Check:
    """Stop an endpoint whose log has no reader."""
    stays_ready(wait(0.5))(launch)

    def check() -> None:
        assert len(launch.lines) == 1

    return check


FAULTS = (
    Fault(
        "dies: exit code 0", BROKEN, 5, f"{_DIED}exit code 0, which vLLM also returns", faults=("--exit-after", "0.3")
    ),
    Fault("dies: exit code 1", BROKEN, 5, f"{_DIED}exit code 1", faults=("--exit-after", "0.3", "--exit-code", "1")),
    *(
        Fault(
            f"dies: {number.name}",
            *(BROKEN, 5, f"{_DIED}killed by signal {number:d} ({number.name})"),
            faults=("--exit-after", "0.3", "--die-by", str(int(number))),
        )
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
    ),
    Fault(
        "dies: and leaves a child in a session of its own",
        *(BROKEN, 5, f"{_DIED}killed by signal 9"),
        faults=("--exit-after", "0.5", "--die-by", "9", "--orphan", "/dev/null"),
    ),
    Fault(
        "dies: /health says so, then it ends with 0",
        *(BROKEN, 5, f"{_DIED}exit code 0"),
        faults=("--sick-after", "0.3", "--exit-after", "2.5"),
    ),
    Fault(
        "dies: /health says so, and it goes on",
        *(BROKEN, 5, f"{_DIED}killed after it had reported on /health"),
        faults=("--sick-after", "0.3"),
        within_s=120,
    ),
    Fault("keeper killed", BROKEN, 5, f"{_DIED}killed by signal 9", provoke=kill("keeper")),
    Fault(
        "servekit killed while its keeper starts",
        *((STARTING,), -9, "starting: imports"),
        provoke=send(signal.SIGKILL, at="starting (imports)"),
    ),
    Fault(
        "a thread of servekit ends unasked",
        *(BROKEN, 70, "a bug in servekit: its thread watch has ended: RuntimeError('provoked')"),
        prepare=break_the_watch,
    ),
    Fault(
        "servekit killed",
        *((STARTING, READY), -9, "ready after"),
        faults=("--orphan", "/dev/null", "--ignore-sigterm"),
        provoke=kill_servekit,
    ),
    Fault(
        "hangs: under a request",
        *(BROKEN, 6, "the engine hangs: it has work and made no progress"),
        faults=("--wedge-after", "0.3"),
        flags=_HANG,
        provoke=request_when_ready(after_s=0.4),
    ),
    Fault(
        "hangs: idle, found by a canary",
        *(BROKEN, 6, "the engine hangs"),
        faults=("--wedge-after", "0.3"),
        flags=(*_HANG, "--canary-s", "1"),
        within_s=120,
    ),
    Fault(
        "hangs: its server stands still",
        *(BROKEN, 6, "the engine hangs"),
        flags=_HANG,
        provoke=kill("server", signal.SIGSTOP),
    ),
    Fault(
        "hangs: its metrics never come",
        *(BROKEN, 6, "the engine hangs"),
        faults=("--mute-metrics-after", "0.3"),
        flags=_HANG,
        within_s=120,
    ),
    Fault(
        "silent: its server stands still for a while, and goes on",
        *((STARTING, READY, SILENT, READY, *DRAINED[2:]), 0, "SIGTERM: drained"),
        flags=("--silent-s", "0.5"),
        provoke=stand_still,
    ),
    Fault(
        "no fault: requests slower than the hang time",
        *(DRAINED, 0, "SIGTERM: drained"),
        faults=("--slow-request-s", "4"),
        flags=_HANG,
        provoke=stays_ready(ask_slowly),
    ),
    Fault(
        "no fault: /health takes 2 s",
        *(DRAINED, 0, "SIGTERM: drained"),
        faults=("--slow-health-s", "2"),
        flags=_HANG,
        provoke=stays_ready(wait(5)),
    ),
    Fault(
        "no fault: idle for longer than the hang time",
        *(DRAINED, 0, "SIGTERM: drained"),
        flags=("--hang-s", "0.5"),
        provoke=stays_ready(wait(2)),
    ),
    Fault(
        "no fault: an idle engine answers its canaries",
        *(DRAINED, 0, "SIGTERM: drained"),
        flags=("--hang-s", "1", "--canary-s", "0.5"),
        provoke=stays_ready(wait(2.5)),
    ),
    Fault(
        "no fault: slow scrapes beside the probes",
        *(DRAINED, 0, "SIGTERM: drained"),
        faults=("--mute-metrics-after", "0.3"),
        provoke=stays_ready(scrape_a_mute_engine),
        within_s=120,
    ),
    Fault(
        "no fault: 200 idle, garbled or reset connections on the observe port",
        *(DRAINED, 0, "SIGTERM: drained"),
        provoke=stays_ready(hold_connections(200)),
        within_s=120,
    ),
    Fault(
        "no fault: a flood of output",
        *(DRAINED, 0, "SIGTERM: drained"),
        faults=("--flood", "500", "--flood-while-serving"),
        provoke=stays_ready(wait(1)),
    ),
    Fault(
        "no fault: nobody reads the log (| head -1)",
        *(DRAINED, 0, "servekit 0."),
        prepare=hang_up_the_log,
        provoke=stop_soon,
    ),
)
