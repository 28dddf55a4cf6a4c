"""Faults in a container: what clients see, the exit code, and the time until Docker reports it healthy again."""

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import wait_until
from tests.container.conftest import REQUIRED
from tests.container.stack import Stack
from tests.engine.test_serving import MODEL

Note = Callable[[str], None]

SERVEKIT = "/opt/servekit/bin/python /opt/servekit/bin/servekit serve"
HOG = """
import time
kept = []
while True:
    kept.append(b"x" * (64 * 1024 ** 2))
    time.sleep(0.01)
"""


class Stream:
    """A client that reads a long answer in the background: what it received, and how it ended."""

    def __init__(self, stack: Stack, tokens: int) -> None:
        self.pieces, self.finish, self.error, self.ended_s = 0, "", "", 0.0
        self._thread = threading.Thread(target=self._read, args=(stack.openai(), tokens), daemon=True)
        self._thread.start()
        wait_until(lambda: self.pieces > 2 or self.error, within_s=120, what="the stream's beginning")
        assert not self.error, self.error

    def _read(self, client: openai.OpenAI, tokens: int) -> None:
        options: dict[str, Any] = {"max_tokens": tokens, "extra_body": {"ignore_eos": True}}
        try:
            with client, client.completions.create(model=MODEL, prompt="1", stream=True, **options) as stream:
                for chunk in stream:
                    self.pieces += 1
                    self.finish = chunk.choices[0].finish_reason or self.finish
        except (openai.OpenAIError, httpx.HTTPError) as error:
            self.error = f"{type(error).__name__}: {str(error)[:80]}"
        self.ended_s = time.monotonic()

    def seen(self, since_s: float) -> str:
        """Return what the client saw, once its stream has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "the client still waits"
        how = self.error or f"finish_reason {self.finish or 'none'}"
        return f"{how} after {self.ended_s - since_s:.1f} s, {self.pieces} pieces"


def healthy_again(stack: Stack, since_s: float, ident: int) -> float:
    """Wait until a new start of the container is healthy; return the seconds since `since_s`."""
    wait_until(lambda: stack.container.attrs["State"]["Pid"] not in {0, ident}, within_s=180, what="a new start")
    stack.until_health("healthy")
    return time.monotonic() - since_s


def start_again(stack: Stack) -> float:
    """Start a stopped container; return the seconds until it is healthy."""
    began = time.monotonic()
    stack.container.start()
    stack.until_health("healthy")
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("what", "exit_code", "said"),
    [("VLLM::EngineCore", "5", "exit code 5"), ("VLLM::Worker", "5", "exit code 5"), (SERVEKIT, "137", "")],
    ids=["EngineCore", "worker", "servekit"],
)
def test_killed_process(healthy: Stack, note: Note, what: str, exit_code: str, said: str) -> None:
    """When a part of the endpoint is killed, the client gets an error, and the container exits and restarts."""
    stream, pid = Stream(healthy, 15000), healthy.container.attrs["State"]["Pid"]
    with healthy.ends() as ends:
        began = time.monotonic()
        healthy.kill(what, "KILL")
        seen = stream.seen(began)
        took = healthy_again(healthy, began, pid)
    assert stream.error
    assert [end["exitCode"] for end in ends] == [exit_code]
    assert said in healthy.log(4000)
    note(f"kill -9: client {seen}; exit {exit_code}; healthy again after {took:.0f} s")


def test_killed_container(healthy: Stack, note: Note) -> None:
    """When the container's first process is killed from the host, Docker restarts it."""
    if os.getuid():
        pytest.skip("only root may kill a container's process from the host")
    stream, pid = Stream(healthy, 15000), healthy.container.attrs["State"]["Pid"]
    with healthy.ends() as ends:
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        seen = stream.seen(began)
        took = healthy_again(healthy, began, pid)
    assert stream.error
    assert [end["exitCode"] for end in ends] == ["137"]
    note(f"kill -9 of the container: client {seen}; exit 137; healthy again after {took:.0f} s")


def test_memory_limit(healthy: Stack, note: Note) -> None:
    """When the kernel kills the worker at the container's memory limit, the log reports it and the exit code is 5."""
    pid, worker = healthy.container.attrs["State"]["Pid"], healthy.process("VLLM::Worker")
    code, output = healthy.run("bash", "-c", f"echo 1000 >/proc/{worker}/oom_score_adj")
    assert code == 0, output
    with healthy.ends() as ends:
        began = time.monotonic()
        code, output = healthy.run("python3", "-c", HOG)
        took = healthy_again(healthy, began, pid)
    assert code == 137, output
    assert [end["exitCode"] for end in ends] == ["5"]
    said = next(line for line in healthy.log(4000).splitlines() if "memory limit was reached" in line)
    note(f"memory limit: exit 5, {said.partition('| ')[2]}; healthy again after {took:.0f} s")


def test_hung_engine(healthy: Stack, note: Note) -> None:
    """A stopped EngineCore is detected because requests wait for it: exit code 6, then a restart."""
    stream, pid = Stream(healthy, 15000), healthy.container.attrs["State"]["Pid"]
    with healthy.ends() as ends:
        began = time.monotonic()
        healthy.kill("VLLM::EngineCore", "STOP")
        seen = stream.seen(began)
        took = healthy_again(healthy, began, pid)
    assert stream.error
    assert [end["exitCode"] for end in ends] == ["6"]
    note(f"SIGSTOP of EngineCore, hang time 20 s: client {seen}; exit 6; healthy again after {took:.0f} s")


def test_wedged_servekit_is_unhealthy(healthy: Stack, note: Note) -> None:
    """While servekit is stopped, its probes time out and Docker reports `unhealthy`; continued, `healthy` again."""
    began = time.monotonic()
    healthy.kill(SERVEKIT, "STOP")
    try:
        healthy.until_health("unhealthy", within_s=180)
        took = time.monotonic() - began
        with healthy.openai() as client:
            assert client.completions.create(model=MODEL, prompt="1", max_tokens=4).usage
    finally:
        healthy.kill(SERVEKIT, "CONT")
    healthy.until_health("healthy", within_s=180)
    note(f"SIGSTOP of servekit: unhealthy after {took:.0f} s (interval 2 s), the endpoint itself answers on")


def test_stop_during_a_stream(healthy: Stack, note: Note) -> None:
    """`docker stop` lets a running answer complete and exits with 0, and the next start reuses the caches."""
    stream = Stream(healthy, 300)
    before = healthy.python("import os; print(os.stat('/var/cache/servekit/bytecode').st_ino)")
    began = time.monotonic()
    healthy.container.stop(timeout=60)
    took = time.monotonic() - began
    seen = stream.seen(began)
    assert (stream.finish, stream.error) == ("length", "")
    assert healthy.container.attrs["State"]["ExitCode"] == 0
    again = start_again(healthy)
    assert healthy.python("import os; print(os.stat('/var/cache/servekit/bytecode').st_ino)") == before
    note(f"docker stop during a stream: client {seen}; exit 0 after {took:.1f} s; started, healthy after {again:.0f} s")


def test_stop_during_the_start(healthy: Stack, note: Note) -> None:
    """`docker stop` while the engine loads exits within seconds, with 0."""
    healthy.container.restart(timeout=60)
    wait_until(lambda: "starting: imports" in healthy.log(5), within_s=120, what="the engine's start")
    assert healthy.health == "starting"
    began = time.monotonic()
    healthy.container.stop(timeout=60)
    took = time.monotonic() - began
    assert healthy.container.attrs["State"]["ExitCode"] == 0
    again = start_again(healthy)
    note(f"docker stop during the start: exit 0 after {took:.1f} s; started, healthy after {again:.0f} s")


def test_daemon_restart(healthy: Stack, note: Note) -> None:
    """When the Docker daemon restarts, the endpoint drains and comes back by itself."""
    command = os.environ.get("CONTAINER_TESTS_RESTART")
    if not command:
        reason = "restarting Docker would disturb others: CONTAINER_TESTS_RESTART names the command"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    stream, pid = Stream(healthy, 300), healthy.container.attrs["State"]["Pid"]
    began = time.monotonic()
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    back = time.monotonic() - began
    seen = stream.seen(began)
    took = healthy_again(healthy, began, pid)
    assert (stream.finish, stream.error) == ("length", "")
    note(f"daemon restarted ({back:.0f} s): client {seen}; healthy again after {took:.0f} s")


def test_second_start_finds_its_caches(healthy: Stack, make_stack: Callable[..., Stack], note: Note) -> None:
    """A recreated container writes nothing again that its volume holds; the table has the figures of both starts.

    What it imports that the first did not, one second earlier or later, it may add.
    """
    list_cache = ("sh", "-c", "find /var/cache/servekit -type f ! -name '*.lock' -printf '%p %s %T@\\n'")
    fresh = make_stack("fresh")
    fresh.compose("up", "--detach", "--wait")
    first, written = fresh.ready_after_s(), set(fresh.run(*list_cache)[1].splitlines())
    fresh.compose("up", "--detach", "--wait", "--force-recreate")
    second, found = fresh.ready_after_s(), set(fresh.run(*list_cache)[1].splitlines())
    fresh.down()
    note(f"start with empty caches {first:.1f} s, with kept ones {second:.1f} s: {second / first:.2f}")
    assert any("model.safetensors" in line for line in written)
    assert written <= found
    assert all(".pyc " in line for line in found - written)
    assert healthy.health == "healthy"
