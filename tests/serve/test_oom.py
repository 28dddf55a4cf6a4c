"""What the kernel says of memory: only what is new, only what can be read."""

from pathlib import Path

from servekit.serve.engine.oom import OomWatcher

KILL = "6,812,99120,-;Out of memory: Killed process 4711 (VLLM::Worker) total-vm:9GB, anon-rss:7GB, oom_score_adj:0\n"


def test_kill_in_the_log_and_in_the_group(tmp_path: Path) -> None:
    """A kill since the start is told from both sources; an earlier one is not."""
    log, events = tmp_path / "kmsg", tmp_path / "memory.events"
    log.write_text("6,1,1,-;Out of memory: Killed process 1 (old) total-vm:1kB\n")
    events.write_text("low 0\noom 3\noom_kill 2\n")
    word = OomWatcher(log, (events,))
    assert word.read() == ""
    with log.open("a") as more:
        more.write("6,2,2,-;something else\n" + KILL)
    events.write_text("low 0\noom 4\noom_kill 3\n")
    said = word.read()
    assert said.startswith("Out of memory: Killed process 4711 (VLLM::Worker) total-vm:9GB")
    assert said.endswith("this container's memory limit was reached")
    word.close()
    assert "limit" in word.read()


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    """The first file that counts kills is used: version 1 has another one than version 2."""
    events = tmp_path / "memory.oom_control"
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    word = OomWatcher(tmp_path / "none", (tmp_path / "memory.events", events))
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert word.read() == "this container's memory limit was reached"


def test_nothing_to_read(tmp_path: Path) -> None:
    """Where the kernel does not tell, nothing is made up."""
    word = OomWatcher(tmp_path / "none", (tmp_path / "none",))
    assert word.read() == ""
    word.close()


def test_real_files_of_this_machine() -> None:
    """The kernel's own files can be opened and read without waiting, or are passed over."""
    word = OomWatcher()
    assert isinstance(word.read(), str)
    word.close()
