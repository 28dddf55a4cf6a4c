"""How the end of an engine is described, and which cause is found in its output."""

import pytest

from servekit.serve.engine.cause import describe_exit, find_cause, without_consequences
from servekit.serve.phases import phase_of
from servekit.serve.status import Phase


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (-15, "killed by signal 15 (SIGTERM)"),
        (-9, "killed by signal 9 (SIGKILL): perhaps out of memory, or killed by hand"),
        (-99, "killed by signal 99 (unknown)"),
    ],
)
def test_exit_is_described(code: int, text: str) -> None:
    """An exit code is described as one, a signal by number and name."""
    assert describe_exit(code) == text


WORKER = "(Worker pid=31) ERROR 11-23 12:16:48 [multiproc_executor.py:870] "


CAUSES = {
    "out of memory": (
        [WORKER + "torch.OutOfMemoryError: CUDA out of memory.", "RuntimeError: Engine core initialization failed."],
        "OutOfMemoryError: CUDA out of memory. (lower max-model-len",
    ),
    "memory taken": (
        ["(EngineCore pid=3) ValueError: Free memory on device cuda:0 (3.1/22.5 GiB) on startup is less than desired"],
        "ValueError: Free memory on device cuda:0 (3.1/22.5 GiB) on startup is less than desired (another",
    ),
    "usage": (["usage: vllm serve", "vllm serve: error: unrecognized arguments: --x"], "unrecognized arguments: --x"),
    "no program": (["cannot start /v: No such file or directory"], "cannot start /v: No such file or directory ("),
    "shapes": (
        [WORKER + "AssertionError: Attempted to load weight (torch.Size([4])) into parameter (torch.Size([8]))"],
        "AssertionError: Attempted to load weight (torch.Size([4])) into parameter (torch.Size([8])) (the weights do",
    ),
    "bare name": (["KeyboardInterrupt"], "KeyboardInterrupt"),
}


@pytest.mark.parametrize(("lines", "cause"), CAUSES.values(), ids=CAUSES)
def test_cause_is_the_innermost_exception(lines: list[str], cause: str) -> None:
    """The first exception that is not just a consequence is the cause; a known one comes with its remedy."""
    assert find_cause(lines).startswith(cause)


TIDYING = [
    "(Worker pid=31) Traceback (most recent call last):",
    '(Worker pid=31)   File "/v/vllm/v1/worker/gpu_worker.py", line 1021, in shutdown',
    '(Worker pid=31)   File "/v/torch/cuda/__init__.py", line 478, in _lazy_init',
    "(Worker pid=31) RuntimeError: Found no NVIDIA driver on your system.",
    "(APIServer pid=29) ERROR 11-24 02:52:19 [async_llm.py:704] vllm.v1.engine.exceptions.EngineDeadError: See above",
    "(Worker pid=31) Exception ignored in: <function CPUDNNLGEMMHandler.__del__ at 0x7fd4519a6fc0>",
    "(Worker pid=31) Traceback (most recent call last):",
    '(Worker pid=31)   File "/v/vllm/_custom_ops.py", line 3248, in __del__',
    "(Worker pid=31) AttributeError: 'NoneType' object has no attribute 'ops'",
]
"""What vLLM 0.20.2 for the CPU prints when its EngineCore is killed."""


def test_an_exception_of_the_tidying_up_is_no_cause() -> None:
    """An exception that a process raises while it exits is not the cause; the next traceback of that process is."""
    assert find_cause(TIDYING) == ""
    other = "(EngineCore pid=30) ValueError: the reason"
    assert find_cause([*TIDYING[:3], other, *TIDYING[3:]]) == "ValueError: the reason"
    later = ["(Worker pid=31) Traceback (most recent call last):", "(Worker pid=31) ValueError: the reason"]
    assert find_cause([*TIDYING, *later]) == "ValueError: the reason"


def test_a_stream_that_ends_is_no_cause() -> None:
    """When EngineCore dies, `/v1/messages` fails to parse the error event of its own stream, `/v1/responses` raises."""
    server = "(APIServer pid=5) ERROR 11-26 19:28:59 [serving.py:784] "
    messages = [
        f"{server}Traceback (most recent call last):",
        f'{server}  File "/v/vllm/entrypoints/anthropic/serving.py", line 587, in message_stream_converter',
        f"{server}pydantic_core._pydantic_core.ValidationError: 2 validation errors for ChatCompletionStreamResponse",
    ]
    messages.append("(APIServer pid=5) RuntimeError: Caught handled exception, but response already started.")
    assert find_cause(messages) == ""
    assert find_cause([*messages, "(Worker pid=6) ValueError: the reason"]) == "ValueError: the reason"


def test_tracebacks_that_follow_are_left_out() -> None:
    """In interleaved output only the lines of a consequence are dropped: its head, its frames and its exception."""
    core = [
        f"(EngineCore pid=3) {text}" for text in ("Traceback (most recent call last):", '  File "c", line 1, in run')
    ]
    end = "(EngineCore pid=3) ValueError: the reason"
    assert without_consequences([TIDYING[0], core[0], *TIDYING[1:3], core[1], TIDYING[3], end]) == [*core, end]
    assert without_consequences(TIDYING[5:]) == []
    assert without_consequences(TIDYING[1:4]) == [], "a traceback whose head is no longer kept"
    assert without_consequences(["Exception ignored in: x", "Traceback (most recent call last):", "KeyError: 1"]) == [
        *("Exception ignored in: x", "Traceback (most recent call last):", "KeyError: 1")
    ]


def test_no_cause_is_made_up() -> None:
    """Lines without an exception give no cause."""
    assert find_cause(["all is well", "(Worker pid=1) INFO 11-23 12:16:47 [x.py:1] no Error: here", ""]) == ""


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        (
            "(EngineCore pid=6) INFO 11-23 12:16:27 [core.py:109] Initializing a V1 LLM engine (v0.20.2)",
            Phase.ENGINE,
        ),
        ("(Worker pid=6744) INFO 11-23 12:16:41 [cpu_model_runner.py:101] Starting to load model /m...", Phase.WEIGHTS),
        ("INFO [backends.py:1] Dynamo bytecode transform time: 12.3 s", Phase.COMPILE),
        ("INFO [backends.py:1] Directly load the compiled graph(s) for compile range", Phase.COMPILE),
        ("Capturing CUDA graphs (decode, FULL):  10%", Phase.WARM_UP),
        ("INFO [api_server.py:602] Starting vLLM server on http://127.0.0.1:8000", None),
        ("", None),
    ],
)
def test_phase_of_a_line(line: str, phase: Phase | None) -> None:
    """The engine's own lines mark the phases of its start."""
    assert phase_of(line) is phase
