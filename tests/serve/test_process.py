"""The engine as a process: it starts, its lines are read, it stops, and no process of it is left."""

import os
import queue
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from servekit.serve.engine import keeper
from servekit.serve.engine.process import Engine
from tests.harness.processes import children_of, is_running, processes_of_group

Eventually = Callable[..., None]
PYTHON = sys.executable


class Recorder:
    """Records the engine's callbacks."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.exits: queue.Queue[int] = queue.Queue()

    def start(self, *argv: str) -> Engine:
        """Start an engine that calls back here."""
        engine = Engine(argv, dict(os.environ), on_line=self.lines.append, on_exit=self.exits.put)
        engine.start()
        return engine

    def exit_code(self) -> int:
        """Wait for the exit code."""
        return self.exits.get(timeout=60)


def test_lines_come_before_the_news_of_the_end() -> None:
    """Every line is passed on, even without an end or with invalid bytes, and then the exit code follows."""
    recorder = Recorder()
    program = (
        "import sys; print('one'); sys.stdout.buffer.write(b'tw\\xffo\\r\\n'); sys.stderr.write('three'); sys.exit(7)"
    )
    recorder.start(PYTHON, "-u", "-c", program)
    assert recorder.exit_code() == 7
    assert sorted(recorder.lines) == ["one", "three", "tw�o"]


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    """A flood without line ends is passed on in chunks."""
    recorder = Recorder()
    recorder.start(PYTHON, "-c", "print('y' * 1_000_000, end='')")
    assert recorder.exit_code() == 0
    assert len(recorder.lines) > 10
    assert sum(map(len, recorder.lines)) == 1_000_000


def test_death_by_signal_has_its_own_code() -> None:
    """The exit code is the leader's, negative for a signal."""
    recorder = Recorder()
    recorder.start(PYTHON, "-c", "import os; os.kill(os.getpid(), 11)")
    assert recorder.exit_code() == -signal.SIGSEGV


def test_missing_program_says_so() -> None:
    """A missing program ends with 127 and a line that names it."""
    recorder = Recorder()
    recorder.start("/nowhere/vllm", "serve")
    assert recorder.exit_code() == 127
    assert recorder.lines == ["cannot start /nowhere/vllm: No such file or directory"]


def test_sigterm_goes_to_the_leader_alone_and_once(tmp_path: Path) -> None:
    """The leader's child gets no signal, and a second request is not passed on."""
    program = textwrap.dedent(f"""
        import signal, subprocess, sys, time
        received = []
        child = subprocess.Popen([sys.executable, "-c", '''
        import signal, time, pathlib
        signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("{tmp_path}/child").write_text("received"))
        print("child up", flush=True); time.sleep(60)'''.replace("\\n        ", "\\n")])
        signal.signal(signal.SIGTERM, lambda *_: received.append(1))
        time.sleep(0.3)
        print("leader up", flush=True)
        while not received: time.sleep(0.01)
        end = time.monotonic() + 0.7
        while time.monotonic() < end: time.sleep(0.01)
        sys.exit(len(received))
    """)
    recorder = Recorder()
    engine = recorder.start(PYTHON, "-c", program)
    while sorted(recorder.lines) != ["child up", "leader up"]:
        assert recorder.exits.empty(), recorder.lines
    engine.terminate()
    engine.terminate()
    assert recorder.exit_code() == 1
    assert not (tmp_path / "child").exists()
    assert processes_of_group(engine._process.pid) == []


@pytest.mark.parametrize("own_session", [False, True])
def test_no_child_outlives_its_leader(tmp_path: Path, *, own_session: bool) -> None:
    """When the leader dies its children are killed, even one that has moved to its own session."""
    program = textwrap.dedent(f"""
        import os, pathlib, subprocess, sys
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(sleeper, start_new_session={own_session})
        pathlib.Path("{tmp_path}/pid").write_text(str(child.pid))
        os.kill(os.getpid(), 9)
    """)
    recorder = Recorder()
    recorder.start(PYTHON, "-c", program)
    assert recorder.exit_code() == -signal.SIGKILL
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_kill_ends_everything_at_once(eventually: Eventually) -> None:
    """`kill` uses SIGKILL: a leader that ignores SIGTERM and its child are gone."""
    program = (
        "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print('up', flush=True); time.sleep(600)"
    )
    recorder = Recorder()
    engine = recorder.start(PYTHON, "-c", program)
    eventually(lambda: recorder.lines == ["up"], what="the leader's line")
    engine.terminate()
    engine.kill()
    assert recorder.exit_code() == -signal.SIGKILL
    assert processes_of_group(engine._process.pid) == []


def test_sweep_ends_an_engine_whose_keeper_is_stopped(eventually: Eventually) -> None:
    """A stopped keeper cannot act, so the whole process group is killed instead."""
    recorder = Recorder()
    engine = recorder.start(PYTHON, "-c", "import time; print('up', flush=True); time.sleep(600)")
    eventually(lambda: recorder.lines == ["up"], what="the leader's line")
    os.kill(engine._process.pid, signal.SIGSTOP)
    engine.kill()
    engine.sweep()
    assert recorder.exit_code() == -signal.SIGKILL
    eventually(lambda: processes_of_group(engine._process.pid) == [], what="the end of the group")


def test_a_killed_keeper_takes_the_engine_with_it(eventually: Eventually) -> None:
    """Killing the keeper leaves no engine behind."""
    recorder = Recorder()
    engine = recorder.start(PYTHON, "-c", "import time; print('up', flush=True); time.sleep(600)")
    eventually(lambda: recorder.lines == ["up"], what="the leader's line")
    os.kill(engine._process.pid, signal.SIGKILL)
    assert recorder.exit_code() == -signal.SIGKILL
    eventually(lambda: processes_of_group(engine._process.pid) == [], what="the end of the group")


def test_engine_ends_when_servekit_is_killed(eventually: Eventually) -> None:
    """SIGKILL of the process that holds the lifeline ends the engine, including children in other sessions."""
    holder = textwrap.dedent("""
        import os, time
        from servekit.serve.engine.process import Engine
        leader = ("import subprocess, sys, time;"
                  "sleeper = [sys.executable, '-c', 'import time; time.sleep(600)'];"
                  "c = subprocess.Popen(sleeper, start_new_session=True);"
                  "print(c.pid, flush=True); time.sleep(600)")
        say = lambda line: print(line, flush=True)
        engine = Engine(["python3", "-c", leader], dict(os.environ), on_line=say, on_exit=say)
        print(engine.start(), flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([PYTHON, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert len(children_of(process.pid)) == 1
        assert all(is_running(pid) for pid in pids)
        process.kill()
    eventually(lambda: not any(is_running(pid) for pid in pids), what="the end of the engine")


def test_keeper_finds_descendants_of_descendants() -> None:
    """The list of descendants is the whole process tree below a process."""
    sleeper = "import time; time.sleep(60)"
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{sleeper}']); {sleeper}"
    with subprocess.Popen([PYTHON, "-c", program]) as process:
        while not (grandchildren := children_of(process.pid)):
            pass
        found = keeper._descendants()
        assert {process.pid, *grandchildren} <= set(found)
        for pid in [*grandchildren, process.pid]:
            os.kill(pid, signal.SIGKILL)
