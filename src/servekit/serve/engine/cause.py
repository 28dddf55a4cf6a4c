"""Why an engine ended, in a sentence: from its exit code and from the last lines it printed."""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

# "EngineCore pid=12" and the like, a level, a time and a place stand before what vLLM 0.20.2 has to say.
_PREFIX = re.compile(r"^(\([A-Za-z_0-9]+ pid=\d+\) )?((INFO|WARNING|ERROR) [\d: .-]+\[[^\]]+\] )?")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Exit|Interrupt))(?::\s*(.+))?$")
_SOURCE = re.compile(r"^\([A-Za-z_0-9]+ pid=\d+\)")
_TRACEBACK = "Traceback (most recent call last):"
_IGNORED = "Exception ignored in: "
_FRAME = re.compile(r' +File ".*", line \d+, in ')
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
    so the first one that is no such consequence is taken.
    """
    for line in without_consequences(lines):
        text = without_prefix(line)
        usage = _USAGE.match(text) or _CANNOT_START.match(text)
        if usage:
            return _with_remedy(usage.group(1))
        found = _EXCEPTION.match(text)
        if found and not any(consequence in text for consequence in _CONSEQUENCES):
            return _with_remedy(f"{found.group(1)}: {found.group(2)}" if found.group(2) else found.group(1))
    return ""


def without_consequences(lines: Iterable[str]) -> list[str]:
    """Return the lines without the tracebacks that only follow from a death elsewhere.

    Those are what a process raises while it tidies up (on the CPU each worker of vLLM 0.20.2 that has lost its
    EngineCore ends with `Found no NVIDIA driver`), and the server's EngineDeadError for each stream. The lines of
    several processes come mixed, so each process has a traceback of its own.
    """
    kept: list[str | None] = list(lines)
    open_blocks: dict[str, _Traceback] = {}
    for at, line in enumerate(kept):
        assert line is not None
        source = _SOURCE.match(line)
        process = source.group() if source else ""
        text = _PREFIX.sub("", line)
        block = open_blocks.get(process)
        header = text.startswith((_IGNORED, _TRACEBACK))
        if (block is None or block.framed) if header else (block is None and _FRAME.match(text)):
            block = open_blocks[process] = _Traceback()
        if block is None:
            continue
        block.places.append(at)
        block.consequence |= bool(_CLEAN_UP.match(text.strip()))
        if text.startswith(" "):
            block.framed = True
        elif not header:  # the exception itself: the end
            del open_blocks[process]
            if block.consequence or any(consequence in text for consequence in _CONSEQUENCES):
                for place in block.places:
                    kept[place] = None
    return [line for line in kept if line is not None]


@dataclass
class _Traceback:
    places: list[int] = field(default_factory=list)
    framed: bool = False
    consequence: bool = False


def _with_remedy(cause: str) -> str:
    for sign, remedy in _REMEDIES:
        if sign.search(cause):
            return f"{cause[:600]} ({remedy})"
    return cause[:600]
