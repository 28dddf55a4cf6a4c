"""The process between servekit and the engine: it ends the engine when servekit ends.

Run as a program: `python -I keeper.py LIFELINE -- COMMAND...`, where LIFELINE is an inherited socket whose other end
only servekit holds. It starts COMMAND (the leader), adopts every orphan the leader leaves (prctl(2),
PR_SET_CHILD_SUBREAPER), forwards the first SIGTERM or SIGINT to the leader alone, and kills whatever is left

- as soon as the leader has ended: a vLLM 0.20.2 server killed by SIGKILL leaves its EngineCore and worker running;
- when the lifeline ends: the kernel closes it however servekit dies. vLLM's server has a moment first to book what its
  keys have used (`close` in `servekit_guard/usage/meter.py`).

It exits as the leader did: with the same exit code, or by the same signal. It uses only the standard library and a
few MiB of memory.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36
_CANNOT_EXECUTE = 127
BOOK = signal.SIGUSR2
"""Makes the guard book what it has counted and end its process; it ends a leader that has no guard yet as well."""
_BOOK_S = 1.0
"""A server needs milliseconds for it; one that hangs or is stopped is killed after this time."""


def main(arguments: list[str]) -> int:
    """Run one command until it has ended; return its exit code or end by its signal."""
    lifeline = socket.socket(fileno=int(arguments[0]))
    command = arguments[arguments.index("--") + 1 :]
    os.set_inheritable(lifeline.fileno(), False)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _wake_on(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    try:
        leader = os.posix_spawnp(command[0], command, os.environ)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", flush=True)  # noqa: T201 - stdout is the engine's log
        return _CANNOT_EXECUTE
    with contextlib.suppress(OSError):  # servekit has ended already: so has the lifeline, which _keep sees
        lifeline.sendall(f"{leader}\n".encode())
    return _end_like(_keep(leader, lifeline, wakeup))


def _wake_on(*signals: signal.Signals) -> socket.socket:
    """Return a socket that receives the number of each of `signals` as one byte."""
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach())
    for number in signals:
        signal.signal(number, lambda *_: None)
    return receiver


def _keep(leader: int, lifeline: socket.socket, wakeup: socket.socket) -> int:
    """Wait for the end of the leader or of the lifeline, kill the rest, return the leader's wait status."""
    forwarded = False
    while True:
        readable, _, _ = select.select([lifeline, wakeup], [], [])
        if lifeline in readable and _has_ended(lifeline):
            _let_book(leader, wakeup)
            return _kill_descendants(leader)
        if wakeup in readable:
            stops = {signal.SIGTERM, signal.SIGINT} & set(wakeup.recv(4096))
            status = _reap(leader)
            if status is not None:
                _kill_descendants(leader)
                return status
            # Only once: a second SIGTERM would interrupt EngineCore's own clean-up.
            if stops and not forwarded:
                forwarded = True
                os.kill(leader, signal.SIGTERM)


def _has_ended(lifeline: socket.socket) -> bool:
    """Return whether the other end is closed; one that was closed with our message unread raises a reset."""
    try:
        return not lifeline.recv(64)
    except OSError:
        return True


def _reap(leader: int) -> int | None:
    """Collect every child that has ended; return the leader's wait status if it is one of them."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == leader:
            ended = status


def _let_book(leader: int, wakeup: socket.socket) -> None:
    """Send the leader `BOOK` and wait for its end, at most `_BOOK_S`."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, BOOK)
    end_s = time.monotonic() + _BOOK_S
    while (left_s := end_s - time.monotonic()) > 0 and select.select([wakeup], [], [], left_s)[0]:
        wakeup.recv(4096)
        if _reap(leader) is not None:
            return


def _kill_descendants(leader: int) -> int:
    """Kill all descendants until none is left; return the leader's wait status, SIGKILL if it had ended before."""
    ended = int(signal.SIGKILL)
    while True:
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return ended
        if pid == leader:
            ended = status


def _descendants() -> list[int]:
    """Return the children of this process, their children, and so on, as /proc shows them now."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = list(children.get(os.getpid(), ()))
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, ()))
    return found


def _end_like(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.set_wakeup_fd(-1)
        if -code not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
