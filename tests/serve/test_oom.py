"""The kernel's reports about memory: only new ones, and only from readable sources."""

from pathlib import Path

from servekit.serve.engine.oom import OomWatcher

KILL = "6,812,99120,-;Out of memory: Killed process 4711 (VLLM::Worker) total-vm:9GB, anon-rss:7GB, oom_score_adj:0\n"


def test_kill_in_the_log_and_in_the_group(tmp_path: Path) -> None:
    """A kill since the start is reported from both sources; an earlier one is not."""
    log, events = tmp_path / "kmsg", tmp_path / "memory.events"
    log.write_text("6,1,1,-;Out of memory: Killed process 1 (old) total-vm:1kB\n")
    events.write_text("low 0\noom 3\noom_kill 2\n")
    watcher = OomWatcher(log, (events,))
    assert watcher.read() == ""
    with log.open("a") as more:
        more.write("6,2,2,-;something else\n" + KILL)
    events.write_text("low 0\noom 4\noom_kill 3\n")
    reports = watcher.read()
    assert reports.startswith("Out of memory: Killed process 4711 (VLLM::Worker) total-vm:9GB")
    assert reports.endswith("this container's memory limit was reached")
    watcher.close()
    assert "limit" in watcher.read()


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    """The first file that counts kills is used: cgroup version 1 has another one than version 2."""
    events = tmp_path / "memory.oom_control"
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    watcher = OomWatcher(tmp_path / "none", (tmp_path / "memory.events", events))
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert watcher.read() == "this container's memory limit was reached"


def test_nothing_to_read(tmp_path: Path) -> None:
    """If the kernel reports nothing, neither does the watcher."""
    watcher = OomWatcher(tmp_path / "none", (tmp_path / "none",))
    assert watcher.read() == ""
    watcher.close()


def test_real_files_of_this_machine() -> None:
    """The kernel's own files can be opened and read without blocking, or are skipped."""
    watcher = OomWatcher()
    assert isinstance(watcher.read(), str)
    watcher.close()
