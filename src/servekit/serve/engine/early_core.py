"""Run vLLM's program, and start its EngineCore early: a program that the engine's Python runs.

    PYTHON early_core.py VLLM serve ...

The server of vLLM 0.20.2 starts EngineCore as a new Python (spawn) when it has imported its modules and read its
configuration and tokenizer. EngineCore then imports most of the same modules, and more, one after the other. This
program imports what both need and forks. It goes on as the server, while the fork imports what only EngineCore needs,
reads the tokenizer and waits. When vLLM starts EngineCore, the fork becomes it: it gets what the new Python would have
got, the environment and the file descriptors, and runs the same `multiprocessing.spawn.spawn_main`. While EngineCore
then loads the model, the server imports what it needs afterwards.

At the fork there is no thread, no socket, no CUDA and no state of the server yet. If the fork has ended, or vLLM wants
a process of another kind, vLLM starts a new Python as always, and that one reports what is wrong.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import shutil
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import popen_spawn_posix, spawn, util
from typing import Any, NoReturn

SHARED = "vllm.v1.engine.core"
"""The module whose imports server and EngineCore share."""
SERVER = "vllm.entrypoints.cli.serve"
"""What the server imports first."""
OWN = (
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.models.gemma4_mm",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.v1.attention.backends.triton_attn",
    "vllm.v1.sample.ops.topk_topp_sampler",
    "vllm.compilation.backends",
    "torch._inductor.async_compile",
    "torch._inductor.runtime.triton_heuristics",
    "transformers.models.gemma4.processing_gemma4",
)
"""What EngineCore imports on a GPU, in its order, after vLLM's plugins."""
HASHES = ("torch._inductor.codecache.torch_key", "triton.runtime.cache.triton_key")
"""Functions that read PyTorch's whole source and Triton's library of 400 MB once, for the keys of compiled code."""
LATER = (
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.serve.cache.api_router",
    "vllm.entrypoints.serve.disagg.api_router",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.render.api_router",
    "vllm.entrypoints.openai.generative_scoring.api_router",
    "servekit_guard.gate",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
)
"""What the server needs once EngineCore is ready (`build_app` in `entrypoints/openai/api_server.py`)."""
NAME = "EngineCore"
"""vLLM's name of the process (`CoreEngineProcManager` in `v1/engine/utils.py`)."""
METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
COMPATIBLE = "VLLM_ENABLE_CUDA_COMPATIBILITY"
"""vLLM then adds a driver's folder to LD_LIBRARY_PATH (`env_override.py`), read as a program starts."""
PATIENCE_S = 300.0
"""How long vLLM's server waits for the fork at most; a host that reads slowly takes a minute for the imports."""
_FDS = 3
"""The resource tracker's, the pipe with the pickled process, and one whose end shows that the process has ended."""


def main(command: list[str]) -> None:
    """Fork EngineCore and run vLLM's program in this process."""
    program = shutil.which(command[0]) or command[0]
    sys.argv = [program, *command[1:]]
    if not getattr(sys.flags, "safe_path", False):  # otherwise no program's folder is there, but the guard's
        sys.path[0] = os.path.dirname(os.path.realpath(program))  # noqa: PTH120 - as Python does
    if os.environ.get(METHOD, "spawn") == "spawn" and os.environ.get(COMPATIBLE, "0") == "0":
        with contextlib.suppress(Exception), uncollected():  # vLLM imports it again, and says what is wrong
            importlib.import_module(SHARED)
            fork_core()
            importlib.import_module(SERVER)
    runpy.run_path(program, run_name="__main__")


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import without Python's garbage collector, a quarter of the time, and keep from it what is there afterwards.

    vLLM calls `gc.collect` many times in EngineCore's start: half a second each with all modules.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def fork_core() -> None:
    """Fork the process that becomes EngineCore when vLLM starts it."""
    if threading.active_count() > 1:  # locks that other threads hold would stay locked in the fork
        return
    server_end, core_end = socket.socketpair()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 counts OpenBLAS's threads too, and those are ready for a fork
        pid = os.fork()
    if not pid:
        server_end.close()
        become_core(core_end)
    core_end.close()
    with contextlib.suppress(ImportError):  # no guard, as in a test of this program
        importlib.import_module("servekit_guard.core.worker").holds_model = False  # type: ignore[attr-defined]
    popen: Any = popen_spawn_posix.Popen
    tools: Any = util
    launch, start_python = popen._launch, tools.spawnv_passfds  # noqa: SLF001 - Python has no other place for this

    def start(path: bytes, words: Sequence[Any], fds: Sequence[int]) -> int:
        """Return the process id of the fork if it does, otherwise that of a new Python."""
        return pid if fits(path, words, fds) and hand_over(server_end, fds) else int(start_python(path, words, fds))

    def launch_core(launcher: Any, process: Any) -> None:
        """Launch a process of `multiprocessing`; the first EngineCore is the fork."""
        if process.name != NAME:
            launch(launcher, process)
            return
        popen._launch, tools.spawnv_passfds = launch, start  # noqa: SLF001
        try:
            launch(launcher, process)
        finally:
            tools.spawnv_passfds = start_python
            server_end.close()
            threading.Thread(target=import_all, args=(LATER,), daemon=True).start()
            if getattr(launcher, "pid", None) != pid:  # it may hang; nothing has waited for it, so the id is still its
                os.kill(pid, signal.SIGKILL)

    popen._launch = launch_core  # noqa: SLF001


def prepare() -> None:
    """Do what EngineCore would do first; without a GPU its workers, which import most, are processes of their own."""
    importlib.import_module("vllm.plugins").load_general_plugins()
    if importlib.import_module("vllm.platforms").current_platform.is_cuda():
        import_all(OWN)
        for name in HASHES:
            with contextlib.suppress(Exception):
                pkgutil.resolve_name(name)()
    with contextlib.suppress(Exception):  # no guard, as in a test of this program; or vLLM says what is wrong
        importlib.import_module("servekit_guard.core.ready_tokenizer").prepare(sys.argv)


def import_all(names: Sequence[str]) -> None:
    """Import what can be imported: whoever needs another module says what is wrong with it."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def become_core(server: socket.socket) -> NoReturn:
    """Wait for what vLLM gives a new Python, and do what that does."""
    try:
        with uncollected():
            prepare()
        server.sendall(b"r")
        tracker, pipe, _ = socket.recv_fds(server, 1, _FDS)[1]
        with server, server.makefile() as lines:
            environment = json.loads(lines.readline())
    except BaseException:  # noqa: BLE001 - a new Python says what is wrong, or the server has ended
        os._exit(1)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    # The same value set again would be elsewhere in memory, and setproctitle finds the command line before the first.
    os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})
    sys.argv = ["-c", "--multiprocessing-fork"]
    try:
        spawn.spawn_main(tracker_fd=tracker, pipe_handle=pipe)
    except Exception:  # noqa: BLE001 - as a new Python ends; this one must not go on as a second server
        traceback.print_exc()
    sys.exit(1)


def fits(path: bytes, words: Sequence[Any], fds: Sequence[int]) -> bool:
    """Return whether vLLM wants a process like this one: the resource tracker, numactl and queues are others."""
    return "--multiprocessing-fork" in words and os.fsdecode(path) == sys.executable and len(fds) == _FDS


def hand_over(core: socket.socket, fds: Sequence[int]) -> bool:
    """Give the waiting fork what a new Python would get; return whether it is still there."""
    with contextlib.suppress(OSError):
        core.settimeout(PATIENCE_S)
        if core.recv(1):
            socket.send_fds(core, [b"f"], fds)
            core.sendall(json.dumps(dict(os.environ)).encode() + b"\n")
            return True
    return False


if __name__ == "__main__":
    main(sys.argv[1:])
