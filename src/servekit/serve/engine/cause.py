"""Why an engine ended, in a sentence: from its exit code and the last lines it printed."""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

# vLLM 0.20.2 writes a process such as "EngineCore pid=12", a level, a time and a place before its message.
_PREFIX = re.compile(r"^(\([A-Za-z_0-9]+ pid=\d+\) )?((INFO|WARNING|ERROR) [\d: .-]+\[[^\]]+\] )?")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Exit|Interrupt))(?::\s*(.+))?$")
_SOURCE = re.compile(r"^\([A-Za-z_0-9]+ pid=\d+\)")
_TRACEBACK = "Traceback (most recent call last):"
_IGNORED = "Exception ignored in: "
_FRAME = re.compile(r' +File ".*", line \d+, in ')
_AFTERMATH = re.compile(r'^File ".*", line \d+, in (shutdown|__del__|message_stream_converter)$')
"""A process tidies up, or `/v1/messages` cannot read the error event of the stream that it converts."""
_CONSEQUENCES = (
    *("Engine core initialization failed", "WorkerProc initialization failed", "EngineDeadError"),
    "Caught handled exception, but response already started",  # Starlette, for a stream of `/v1/responses`
)
_REFUSAL = re.compile(r"^(?:vllm(?: serve)?: error: (?P<usage>.+)|(?P<keeper>cannot start .+))$")
"""vLLM rejects its arguments, or the keeper cannot start it."""

_REMEDIES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"'_OpNamespace' '_C' object has no attribute"),
        "the engine's compiled part did not load: its first warnings name the missing library, on Debian libnuma1",
    ),
    (
        re.compile(r"out of memory|OutOfMemoryError|No available memory for the cache blocks", re.IGNORECASE),
        "lower max-model-len, max-num-batched-tokens or raise gpu-memory-utilization; see what else uses the GPU",
    ),
    (
        re.compile(r"[Ff]ree memory on device"),
        "another process holds memory on this GPU: end it, or lower gpu-memory-utilization",
    ),
    (
        re.compile(r"larger than the available KV cache memory|max seq len .* is larger"),
        "lower max-model-len or raise gpu-memory-utilization",
    ),
    (re.compile(r"[Aa]ddress already in use"), "another program listens there: choose another port"),
    (
        re.compile(r"missing \d+ required positional arguments.*|CompressedTensorsConfig"),
        "the checkpoint holds no compressed-tensors weights: serve the compressed one, or --deviate quantization",
    ),
    (
        re.compile(r"Repo id must be|is not a local folder|LocalEntryNotFound|OfflineModeIsEnabled|not a valid model"),
        "check --model: a checkpoint folder, or a hub id that is in the cache or reachable",
    ),
    (
        re.compile(r"No such file or directory|FileNotFoundError"),
        "a file of the checkpoint or the engine is missing",
    ),
    (
        re.compile(
            r"size mismatch|shape|not initialized from checkpoint|Attempted to load weight|"
            r"The size of tensor|exceeds dimension size"
        ),
        "the weights do not fit config.json",
    ),
    (
        re.compile(r"driver|CUDA error|no CUDA-capable", re.IGNORECASE),
        "check the NVIDIA driver with nvidia-smi",
    ),
)


def describe_exit(code: int) -> str:
    """Return how a process ended; `code` as in subprocess, negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    name = next((each.name for each in signal.Signals if each == -code), "unknown")
    hint = ": perhaps out of memory, or killed by hand" if -code == signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}){hint}"


def without_prefix(line: str) -> str:
    """Return a line of the engine without the process, level, time and place before the message."""
    return _PREFIX.sub("", line).strip()


def find_cause(lines: Iterable[str], first: int = 0) -> str:
    """Return the cause that the lines from number `first` on name, with a remedy if known; empty if they name none.

    vLLM ends with `Engine core initialization failed`, a consequence. The cause is the first exception that is not a
    consequence: the innermost process raised it. The lines before `first` show where a traceback began.
    """
    for line in without_consequences(lines, first):
        text = without_prefix(line)
        if refusal := _REFUSAL.match(text):
            return _with_remedy(refusal["usage"] or refusal["keeper"])
        if (found := _EXCEPTION.match(text)) and not _is_consequence(text):
            return _with_remedy(": ".join(filter(None, found.groups())))
    return ""


def without_consequences(lines: Iterable[str], first: int = 0) -> list[str]:
    """Return the lines from number `first` on, without tracebacks that are only a consequence of a death elsewhere.

    A process raises some while it cleans up (on the CPU each worker of vLLM 0.20.2 that has lost its EngineCore ends
    with `Found no NVIDIA driver`), and the server raises EngineDeadError for each stream. The lines of several
    processes are interleaved, so each process has its own open traceback.
    """
    kept = list(lines)
    dropped: set[int] = set()
    tracebacks: dict[str, _Traceback] = {}
    for at, line in enumerate(kept):
        process = source.group() if (source := _SOURCE.match(line)) else ""
        text = _PREFIX.sub("", line)
        open_one = tracebacks.get(process)
        header = text.startswith((_IGNORED, _TRACEBACK))
        if (open_one is None or open_one.framed) if header else (open_one is None and _FRAME.match(text)):
            open_one = tracebacks[process] = _Traceback()
        if open_one is None:
            continue
        open_one.places.append(at)
        open_one.consequence |= bool(_AFTERMATH.match(text.strip()))
        if text.startswith(" "):
            open_one.framed = True
        elif not header:  # the exception itself: the end
            del tracebacks[process]
            if open_one.consequence or _is_consequence(text):
                dropped.update(open_one.places)
    return [line for at, line in enumerate(kept) if at >= first and at not in dropped]


@dataclass
class _Traceback:
    places: list[int] = field(default_factory=list)
    framed: bool = False
    consequence: bool = False


def _is_consequence(text: str) -> bool:
    return any(consequence in text for consequence in _CONSEQUENCES)


def _with_remedy(cause: str) -> str:
    remedy = next((remedy for sign, remedy in _REMEDIES if sign.search(cause)), "")
    return f"{cause[:600]} ({remedy})" if remedy else cause[:600]
