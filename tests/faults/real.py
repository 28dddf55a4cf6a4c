"""Faults on the real engine that tests/engine does not cover."""

import json
import os
import signal

import urllib3

from tests.faults.before_start import with_checkpoint
from tests.faults.fault import BROKEN, DRAINED, FAILED, NOT_STARTED, READY, SILENT, STARTING, Check, Fault
from tests.faults.launch import MODEL, Launch
from tests.faults.provoke import kill, refused, send_with_requests
from tests.harness.server import ENGINE, PATCHES


def drain_streams(launch: Launch) -> Check:
    """Send SIGTERM while 8 streams run: all complete, new connections are refused, liveness stays green."""
    launch.until_says("ready")
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 800, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}  # one event may hold several tokens
    headers = {"Authorization": f"Bearer {launch.key}"}
    pool = launch.things.enter_context(urllib3.PoolManager(headers=headers, retries=False, timeout=120, maxsize=9))
    streams = [pool.request("POST", f"{launch.url}/v1/completions", json=body, preload_content=False) for _ in range(8)]
    launch.process.send_signal(signal.SIGTERM)
    launch.until_says("draining", 60)
    assert launch.observe("/livez")[0] == 200
    launch.until(lambda: refused(launch), "refusal of new connections", 60)

    def check() -> None:
        for stream in streams:
            text = stream.read().decode()
            assert '"completion_tokens":800' in text, text[-900:]
            assert '"finish_reason":"length"' in text
            assert text.rstrip().endswith("data: [DONE]")

    return check


def kill_core_in_a_drain(launch: Launch) -> Check:
    """Kill EngineCore while a drain waits for 3 requests: they fail, although vLLM ends with 0."""
    launch.until_says("ready")
    answers = launch.ask(3, max_tokens=8000, ignore_eos=True)
    launch.process.send_signal(signal.SIGTERM)
    launch.until_says("draining", 5)
    launch.until(lambda: refused(launch), "refusal of new connections", 5)
    os.kill(launch.pid_of("core"), signal.SIGKILL)

    def check() -> None:
        launch.until(lambda: len(answers) == 3, "answers", 10)
        assert set(answers) <= {0, 500}

    return check


def other_flags(launch: Launch) -> None:
    """Use a script as the engine that starts the real one with fewer sequences and without prefix caching."""
    path = launch.folder / "engine"
    path.write_text(f'#!/bin/sh\nexec {ENGINE} "$@" --max-num-seqs 256 --no-enable-prefix-caching\n')
    path.chmod(0o755)
    launch.environ |= {"SERVEKIT_ENGINE": str(path), "SERVEKIT_ENGINE_PATCHES": str(PATCHES)}


def other_shapes(launch: Launch) -> None:
    """Make config.json declare another MLP width than the weights have."""
    path = launch.folder / "model" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["intermediate_size"] *= 2
    path.write_text(json.dumps(config))


FAULTS = (
    Fault(
        "SIGTERM with 8 streams running",
        *(DRAINED, 0, " running requests, at most 60 s to finish"),  # a slow machine may have finished the first
        engine="real",
        provoke=drain_streams,
        within_s=120,
    ),
    Fault(
        "SIGTERM, the drain runs out",
        *(DRAINED, 8, " running requests cut"),
        engine="real",
        flags=("--drain-s", "3"),
        provoke=send_with_requests(4, signal.SIGTERM, statuses={0, 500}, max_tokens=8000, ignore_eos=True),
        within_s=120,
    ),
    Fault(
        "SIGTERM with 3 requests running, then EngineCore is killed",
        *(DRAINED, 8, "the drain did not finish: EngineCore died, and with it 3 running requests"),
        engine="real",
        provoke=kill_core_in_a_drain,
        within_s=120,
    ),
    Fault(
        "hangs: the API server stands still",
        *((STARTING, READY, SILENT, FAILED), 6, "the engine hangs"),
        engine="real",
        flags=("--hang-s", "10"),
        provoke=kill("server", signal.SIGSTOP),
        within_s=120,
    ),
    Fault(
        "hangs: EngineCore stands still while idle, found by a canary",
        *(BROKEN, 6, "the engine hangs"),
        engine="real",
        flags=("--hang-s", "10", "--canary-s", "5"),
        provoke=kill("core", signal.SIGSTOP),
        within_s=120,
    ),
    Fault(
        "contract: other values than planned",
        *(NOT_STARTED, 7, "max-num-seqs: wanted 1024, the engine runs with 256; enable-prefix-caching: wanted True"),
        engine="real",
        prepare=other_flags,
        within_s=120,
    ),
    Fault(
        "start: fails, weights of another shape",
        *(NOT_STARTED, 4, "the weights do not fit config.json"),
        engine="real",
        flags=("--skip", "tensor-shape"),
        prepare=with_checkpoint(other_shapes),
        within_s=120,
    ),
)
