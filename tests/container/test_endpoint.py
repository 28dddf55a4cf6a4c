"""The endpoint as its clients, its operator and Docker see it, on the real engine in a real container."""

import os
import time
from collections.abc import Callable

import httpx
import openai
import pytest

from tests.container.stack import Stack
from tests.engine.test_serving import MODEL, look_at

Note = Callable[[str], None]

HARDENING = """
import pathlib
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(status["Uid"].split()[0], status["CapBnd"].strip(), status["NoNewPrivs"].strip(), status["Seccomp"].strip())
"""
WRITABLE = """
import os
folders = "/ /etc /etc/servekit /opt/servekit /opt/engine-patches /opt/vllm /usr/local/bin /home /root /run/secrets"
for folder in folders.split():
    try:
        open(os.path.join(folder, "a"), "w")
        print("written:", folder)
    except OSError:
        pass
try:
    open("/etc/servekit/vllm_config.yaml", "a")
    print("written: the profile")
except OSError:
    pass
"""
PROGRAM_IN_TMP = """
import os, pathlib, subprocess
program = pathlib.Path("/tmp/program")
program.write_text("#!/bin/bash" + chr(10))
program.chmod(0o755)
try:
    subprocess.run([program])
    print("ran")
except OSError as error:
    print(error.strerror)
program.unlink()
"""


def test_health_begins_with_starting(stack: Stack, note: Note) -> None:
    """Docker reports `starting` while the engine loads, and `healthy` once it answers."""
    assert stack.first_health == "starting"
    assert stack.health == "healthy"
    note(f"first start, caches empty: ready after {stack.ready_after_s():.1f} s")


def test_chat_and_images(healthy: Stack, key_file: os.PathLike[str]) -> None:
    """With a key of the mounted file, chat and image requests through the published port are answered."""
    with open(key_file, encoding="ascii") as file:  # noqa: PTH123 - the type allows no more
        key = file.read().splitlines()[1]
    with healthy.openai(key) as client:
        chat = client.chat.completions
        answer = chat.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=8)
        seen = chat.create(model=MODEL, messages=[{"role": "user", "content": look_at(3)}], max_tokens=4)
    assert answer.choices[0].message.content
    assert seen.usage is not None
    assert seen.usage.prompt_tokens > answer.usage.prompt_tokens  # type: ignore[union-attr]


def test_nothing_without_the_key(healthy: Stack) -> None:
    """Without the key, and on routes outside OpenAI's API, a client outside the container gets nothing but /health."""
    with healthy.openai("sk-wrong-" + "x" * 20) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    routes = {"/v1/models": 401, "/invocations": 404, "/docs": 404, "/metrics": 404, "/health": 200}
    assert {route: httpx.get(healthy.url + route).status_code for route in routes} == routes


def test_no_rights_inside(healthy: Stack) -> None:
    """PID 1 and every later process run as non-root, without capabilities or new privileges, with Docker's seccomp."""
    uid = str(os.getuid() or 10001)
    expected = f"{uid} 0000000000000000 1 2"
    assert healthy.python(HARDENING) == expected
    assert healthy.python(HARDENING.replace("self", "1")) == expected
    assert healthy.python(HARDENING.replace("self", str(healthy.process("VLLM::EngineCore")))) == expected


def test_nothing_to_write_on(healthy: Stack) -> None:
    """The root file system, the profile and the key are read-only, and /tmp is mounted noexec."""
    assert healthy.python(WRITABLE) == ""
    assert healthy.python(PROGRAM_IN_TMP) == "Permission denied"


def test_first_process_reaps(healthy: Stack) -> None:
    """PID 1 reaps orphaned processes, so that no zombie remains."""
    code, _ = healthy.run("bash", "-c", "(sleep 0.2 &) ; exit 0")
    assert code == 0
    time.sleep(1)
    zombies = healthy.python(
        "import glob; print([p for p in glob.glob('/proc/[0-9]*/stat') if ') Z ' in open(p).read()])"
    )
    assert zombies == "[]"


def test_other_tenant(healthy: Stack, make_stack: Callable[..., Stack], note: Note) -> None:
    """A second tenant on the host uses the same file with another name and port, and servekit generates its key."""
    other = make_stack("b")
    other.compose("up", "--detach", "--wait")
    assert other.health == "healthy"
    key = other.key()
    assert key.startswith("sk-servekit-")
    with other.openai(key) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
    for one, wrong in ((healthy, key), (other, healthy.key())):
        with one.openai(wrong) as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
    note(f"a second tenant beside the first: ready after {other.ready_after_s():.1f} s")
    assert key not in other.container.logs().decode()
    began = time.monotonic()
    other.compose("down", "--volumes")
    note(f"its `down`: {time.monotonic() - began:.1f} s")
    healthy.until_health("healthy")  # its probes may have been slow beside the second
