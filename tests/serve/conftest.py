"""Fixtures for the tests of supervision: plans for the fake engine, and a supervisor that runs in a thread."""

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ExitCode
from servekit.profile import Value, resolve
from servekit.serve.guard import GuardSettings
from servekit.serve.plan import Plan
from servekit.serve.status import Status, StatusStore
from servekit.serve.supervisor import Supervisor
from servekit.serve.watch.probe import EngineClient
from servekit.serve.watch.watcher import HangPolicy
from servekit.settings import Target

FAKE = Path(__file__).parent / "fake_engine.py"


@pytest.fixture
def make_plan(free_port: int) -> Callable[..., Plan]:
    """Make a plan whose engine is the fake one with the given faults."""

    def make(*faults: str, start_s: float = 120, drain_s: int = 5, hang_s: float = 60, silent_s: float = 10) -> Plan:
        argv = (sys.executable, str(FAKE), "serve", "/models/m", "--served-model-name", "m")
        address = ("--host", "127.0.0.1", "--port", str(free_port), "--shutdown-timeout", str(drain_s))
        values: dict[str, Value] = {
            "quantization": "compressed-tensors",
            "max-num-seqs": 1024,
            "limit-mm-per-prompt": {"image": 3, "audio": 0, "video": 0},
        }
        return Plan(
            target=Target.CPU,
            profile=Path("vllm_config.yaml"),
            model="/models/m",
            values=values,
            arguments=resolve(values, target="cpu"),
            addresses={},
            cache_dir=Path("/nowhere"),
            served_name="m",
            argv=(*argv, *address, *faults),
            environment={},
            inherited={},
            withheld={},
            host="127.0.0.1",
            port=free_port,
            observe_host="127.0.0.1",
            observe_port=0,
            start_s=start_s,
            drain_s=drain_s,
            patience=HangPolicy(hang_s, silent_s=silent_s),
            guard=GuardSettings(state_dir=Path("/nowhere"), max_in_flight=2048, settle_s=drain_s / 2),
            run_dir=Path("/nowhere"),
        )

    return make


@dataclass
class Run:
    """A supervisor that runs in a thread."""

    plan: Plan
    board: StatusStore
    supervisor: Supervisor
    thread: threading.Thread
    exit_codes: list[ExitCode]

    @property
    def status(self) -> Status:
        """The current status."""
        return self.board.read()

    def end(self, within_s: float = 60) -> ExitCode:
        """Wait for the end and return the exit code."""
        self.thread.join(within_s)
        assert not self.thread.is_alive(), f"still {self.status.state}: {self.status.reason}"
        return self.exit_codes[0]


@pytest.fixture
def supervise(make_plan: Callable[..., Plan]) -> Iterator[Callable[..., Run]]:
    """Supervise the fake engine with the given faults; at the end of the test, stop whatever still runs."""
    runs: list[Run] = []

    def start(*faults: str, **named: Any) -> Run:
        witnesses = {name: named.pop(name) for name in ("in_flight", "gpu_errors") if name in named}
        plan = make_plan(*faults, **named)
        board = StatusStore()
        supervisor = Supervisor(plan, board, EngineClient(plan.url), {}, **witnesses)
        codes: list[ExitCode] = []
        thread = threading.Thread(target=lambda: codes.append(supervisor.run()), daemon=True)
        runs.append(Run(plan, board, supervisor, thread, codes))
        thread.start()
        return runs[-1]

    yield start
    for run in runs:
        run.supervisor.request_stop("end of the test")
        run.supervisor.request_stop("end of the test")
        run.thread.join(20)
