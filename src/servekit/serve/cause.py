"""Why an engine ended, in a sentence: from its exit code and from the last lines it printed."""

import re
import signal
from collections.abc import Iterable

# "EngineCore pid=12" and the like, a level, a time and a place stand before what vLLM 0.20.2 has to say.
_PREFIX = re.compile(r"^(\([A-Za-z_0-9]+ pid=\d+\) )?((INFO|WARNING|ERROR) [\d: .-]+\[[^\]]+\] )?")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Exit|Interrupt))(?::\s*(.+))?$")
_SOURCE = re.compile(r"^\([A-Za-z_0-9]+ pid=\d+\)")
_TRACEBACK = "Traceback (most recent call last):"
_CLEAN_UP = re.compile(r'^File ".*", line \d+, in (shutdown|__del__)$')
_CONSEQUENCES = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineDeadError")
_USAGE = re.compile(r"^vllm(?: serve)?: error: (.+)$")
_CANNOT_START = re.compile(r"^(cannot start .+)$")

_REMEDIES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"'_OpNamespace' '_C' object has no attribute"),
        "the engine's compiled part did not load: its first warnings name the missing library, on Debian libnuma1",
    ),
    (
        re.compile(r"out of memory|OutOfMemoryError|No available memory for the cache blocks", re.IGNORECASE),
        "lower max-model-len, max-num-batched-tokens or raise gpu-memory-utilization; see what else uses the card",
    ),
    (
        re.compile(r"[Ff]ree memory on device"),
        "another process holds memory on this card: end it, or lower gpu-memory-utilization",
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
    """Say how a process ended; `code` as subprocess has it, negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = ": perhaps out of memory, or killed by hand" if -code == signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}){hint}"


def without_prefix(line: str) -> str:
    """Return what a line of the engine says, without process, level, time and place before it."""
    return _PREFIX.sub("", line).strip()


def find_cause(lines: Iterable[str]) -> str:
    """Return the engine's own reason in its last lines, with a remedy where one is known; empty if there is none.

    vLLM ends with `Engine core initialization failed`; what helps is the first exception of the innermost process,
    so the first one that is no such consequence is taken. Nor is one that a process raises while it tidies up: on the
    CPU each worker of vLLM 0.20.2 that has lost its EngineCore ends with `Found no NVIDIA driver`.
    """
    tidying: set[str] = set()
    for line in lines:
        text = without_prefix(line)
        source = _SOURCE.match(line)
        process = source.group() if source else ""
        if text == _TRACEBACK:
            tidying.discard(process)
        elif _CLEAN_UP.match(text):
            tidying.add(process)
        usage = _USAGE.match(text) or _CANNOT_START.match(text)
        if usage:
            return _with_remedy(usage.group(1))
        found = _EXCEPTION.match(text)
        if found and process not in tidying and not any(consequence in text for consequence in _CONSEQUENCES):
            return _with_remedy(f"{found.group(1)}: {found.group(2)}" if found.group(2) else found.group(1))
    return ""


def _with_remedy(cause: str) -> str:
    for sign, remedy in _REMEDIES:
        if sign.search(cause):
            return f"{cause[:600]} ({remedy})"
    return cause[:600]
