"""What happens to the replicas, one event after the other, and what each must show."""

import http.client
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.scale.load import Load
from benchmarks.scale.scene import Scene

HANG_S = 30
"""SERVEKIT_HANG_S of the replicas."""
CORE, SERVER, FIRST = "VLLM::EngineCore", "early_core.py vllm serve", "dumb-init"
_TOKENS = 2_000
Figures = dict[str, Any]


class Event(NamedTuple):
    """Something that happens under load."""

    play: Callable[[Scene, Load], Figures]
    """Do it, and wait until every replica is in rotation again."""
    may_fail: tuple[str, ...] = ()
    """How a request may end meanwhile, besides well."""
    limits_s: Mapping[str, float] = {}
    """The longest that a measured time may be."""


OUT = "out of rotation, s"
SERVED = "served again, s"
OTHERS = "requests of other replicas that failed"
_CUT = ("stream: cut", "stream: error event")


def rolling(scene: Scene, load: Load) -> Figures:
    """Replace the replicas one after the other, as docs/scale.md says."""
    figures = {}
    for number in range(1, scene.replicas + 1):
        began_s, before = time.monotonic(), load.ended
        scene.compose("up", "--detach", "--no-deps", "--force-recreate", f"servekit-{number}")
        scene.all_in()
        figures[f"servekit-{number} replaced, s"] = round(time.monotonic() - began_s, 1)
        figures[f"requests while servekit-{number} was replaced"] = load.ended - before
    return figures


def sigterm(scene: Scene, _load: Load) -> Figures:
    """Ask a replica to stop, and start it again when it has drained."""
    container = scene.replica(1)
    container.kill("SIGTERM")
    figures = {OUT: scene.out(1)}
    figures["drained, s"] = _timed(lambda: container.wait(timeout=120))
    container.start()
    scene.all_in()
    return figures


def router_restarted(scene: Scene, load: Load) -> Figures:
    """Restart the router while a replica is down."""
    container = scene.replica(1)
    container.stop(timeout=90)
    scene.out(1)
    scene.stack.containers("router")[0].restart(timeout=5)
    figures = {SERVED: _timed(lambda: _until_served(load))}
    container.start()
    scene.all_in()
    return figures


def core_killed(scene: Scene, load: Load) -> Figures:
    """Kill EngineCore of a replica: its server survives long enough to tell the clients."""
    return _harmed(scene, load, 1, CORE, signal.SIGKILL)


def replica_killed(scene: Scene, load: Load) -> Figures:
    """Kill the first process of a replica, and so, in the same moment, every other; Docker starts it again."""
    return _harmed(scene, load, 2, FIRST, signal.SIGKILL)


def core_hung(scene: Scene, load: Load) -> Figures:
    """Stop EngineCore of a replica without an end: its server answers, and its requests make no progress."""
    return _harmed(scene, load, 3, CORE, signal.SIGSTOP)


def server_hung(scene: Scene, load: Load) -> Figures:
    """Stop the server of a replica without an end: nothing answers."""
    return _harmed(scene, load, 3, SERVER, signal.SIGSTOP)


EVENTS: Mapping[str, Event] = {
    "rolling": Event(rolling),
    "sigterm": Event(sigterm, limits_s={OUT: 2}),
    "router-restarted": Event(router_restarted, ("502", "503", "stream: cut"), {SERVED: 2}),
    "engine-killed": Event(core_killed, ("stream: error event",)),
    "replica-killed": Event(replica_killed, _CUT),
    "engine-hung": Event(core_hung, _CUT, {OUT: HANG_S + 1}),
    "server-hung": Event(server_hung, _CUT, {OUT: HANG_S + 1}),
}
_STEADY = Event(lambda *_: {})


def judge(name: str, figures: Figures, failed: Mapping[str, int]) -> list[str]:
    """Return what should not have happened in an event."""
    event = EVENTS.get(name, _STEADY)
    wrong = [
        f"{name}: {count} of {what}"
        for what, count in failed.items()
        if not any(what.endswith(may) for may in event.may_fail)
    ]
    wrong += [
        f"{name}: {what}: {figures[what]:.2f}, at most {limit:g}"
        for what, limit in event.limits_s.items()
        if figures.get(what, 0) > limit
    ]
    if figures.get(OTHERS):
        wrong.append(f"{name}: requests of other replicas failed: {figures[OTHERS]}")
    if OTHERS in figures and not failed:
        wrong.append(f"{name}: no stream has met it")
    return wrong


def _harmed(scene: Scene, load: Load, number: int, part: str, signal: signal.Signals) -> Figures:
    """Harm a replica while long streams run on all of them; count what ran there, and what failed elsewhere."""
    others = [each for each in range(1, scene.replicas + 1) if each != number]
    before = {each: scene.counts(each) for each in others}
    streams = [threading.Thread(target=load.stream, args=(_TOKENS,)) for _ in range(2 * scene.replicas)]
    for stream in streams:
        stream.start()
    while not _all_running(scene, len(streams)):
        time.sleep(0.05)
    running = scene.counts(number)["in flight"]
    scene.signal(number, part, signal)
    figures: Figures = {OUT: scene.out(number)}
    for stream in streams:
        stream.join()
    figures["in rotation again, s"] = scene.all_in()
    after = {each: scene.counts(each) for each in others}
    figures["in flight there just before"] = running
    figures[OTHERS] = sum(
        after[each].get(how, 0) - before[each].get(how, 0) for each in others for how in ("failed", "cancelled")
    )
    return figures


def _all_running(scene: Scene, streams: int) -> bool:
    running = [scene.counts(each).get("in flight", 0) for each in range(1, scene.replicas + 1)]
    return sum(running) >= streams and all(running)


def _until_served(load: Load) -> None:
    """Ask for something that a replica answers at once, with the client's key."""
    while load.status("GET", "/v1/models") != http.client.OK:
        time.sleep(0.02)


def _timed(wait: Callable[[], object]) -> float:
    began_s = time.monotonic()
    wait()
    return time.monotonic() - began_s
