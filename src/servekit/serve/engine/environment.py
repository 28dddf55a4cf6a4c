"""Which variables of the operator's shell reach the engine: one table, each row with its reason.

A variable that changes what Python or vLLM does passes only if a row allows it; all others (PATH, HOME, CUDA_*, HF_*,
NCCL_*, ...) pass. servekit logs the names of those that it withholds, never their values; `SERVEKIT_PASS_ENV`
lets individual ones pass.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Row:
    """What happens to the variables that `names` (a regular expression for the whole name) matches, and why."""

    names: str
    passes: bool
    why: str
    final: bool = False
    """Whether `SERVEKIT_PASS_ENV` cannot change it."""


def _kept(names: str, why: str) -> Row:
    return Row(names, passes=True, why=why)


def _withheld(names: str, why: str, *, final: bool = False) -> Row:
    return Row(names, passes=False, why=why, final=final)


TABLE: Final = (
    _withheld(r"SERVEKIT_.*", "servekit's own settings", final=True),
    # Python
    _kept(r"PYTHONPATH", "comes after servekit's own folders"),
    _kept(r"PYTHONPYCACHEPREFIX|PYTHONDONTWRITEBYTECODE", "where bytecode is kept, if at all"),
    _kept(r"PYTHONUNBUFFERED|PYTHONUTF8|PYTHONIOENCODING|PYTHONFAULTHANDLER", "only how the log is written"),
    _kept(r"PYTHONHASHSEED|PYTHONNOUSERSITE|PYTHONSAFEPATH", "makes a run repeatable, or imports less"),
    _withheld(r"PYTHONOPTIMIZE", "removes the assertions that vLLM checks requests with"),
    _withheld(r"PYTHONSTARTUP|PYTHONINSPECT|PYTHONBREAKPOINT", "for a person at a prompt: it would run code or wait"),
    _withheld(r"PYTHONHOME|PYTHONUSERBASE|PYTHONPLATLIBDIR|PYTHONEXECUTABLE", "another Python's library"),
    _withheld(r"PYTHONWARNINGS", "can turn a warning into an exception in the middle of a request"),
    _withheld(r"PYTHONINTMAXSTRDIGITS", "can lift Python's limit on the digits of a number"),
    _withheld(r"PYTHON[A-Z].*", "nothing the engine is known to need"),
    # The dynamic loader
    _kept(r"LD_LIBRARY_PATH", "where CUDA's libraries are"),
    _withheld(r"LD_PRELOAD", "code in every process; an allocator (jemalloc) passes with SERVEKIT_PASS_ENV"),
    _withheld(r"LD_.*", "the loader's debugging"),
    # Other programs' variables that open something
    _withheld(r"FORWARDED_ALLOW_IPS", "uvicorn would believe a client's claim about its address"),
    _withheld(r"WEB_CONCURRENCY", "more server processes than the guard counts in"),
    _withheld(r"PROMETHEUS_MULTIPROC_DIR", "vLLM would mix in another run's counters, which decide about a hang"),
    _withheld(r"SSLKEYLOGFILE", "the keys of encrypted connections in a file"),
    # vLLM 0.20.2 (vllm/envs.py): what weakens, opens or reveals
    _withheld(r"VLLM_API_KEY", "vLLM writes it into its log and its compile cache; the guard has the keys", final=True),
    _withheld(r"VLLM_SERVER_DEV_MODE", "development routes, and tracebacks in answers"),
    _withheld(r"VLLM_ALLOW_INSECURE_SERIALIZATION", "pickles between the processes"),
    _withheld(r"VLLM_ALLOW_RUNTIME_LORA_UPDATING|VLLM_LORA_RESOLVER_.*", "weights loaded on a client's request"),
    _withheld(r"VLLM_ENABLE_RESPONSES_API_STORE", "keeps every answer in memory, never freed, readable by its id"),
    _withheld(r"VLLM_GPT_OSS_.*|VLLM_USE_EXPERIMENTAL_PARSER_CONTEXT", "tools that the server itself would run"),
    _withheld(r"VLLM_TOOL_JSON_ERROR_AUTOMATIC_RETRY", "tools that the server itself would run"),
    _withheld(r"VLLM_V1_USE_OUTLINES_CACHE", "a cache on disk that clients fill without bound"),
    _withheld(r"VLLM_MEDIA_CACHE.*", "clients' images on disk"),
    _withheld(r"VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "two requests with one id would meet in the engine"),
    _withheld(r"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "the server would outlive its dead engine"),
    _withheld(r"VLLM_LOOPBACK_IP", "the processes' own sockets on an address that others reach"),
    _withheld(r"VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "answers in the log"),
    _withheld(
        r"VLLM_LOGGING_LEVEL", "DEBUG writes prompts into the log (chat_utils.py); above INFO the phases are lost"
    ),
    _withheld(r"VLLM_LOGGING_(CONFIG_PATH|STREAM|PREFIX|COLOR)|VLLM_CONFIGURE_LOGGING", "servekit reads the log"),
    _withheld(r"VLLM_TRACE_FUNCTION", "every function call in a file"),
    _withheld(r"VLLM_(DEBUG|GC_DEBUG|PATTERN_MATCH_DEBUG|TEST|CI)(_.*)?", "for vLLM's developers"),
    _withheld(r"VLLM_(CUSTOM|NVTX)_SCOPES_FOR_PROFILING", "for vLLM's developers"),
    _withheld(r"VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "wrong answers, for measurements"),
    _withheld(r"VLLM_USE_MODELSCOPE|VLLM_MODEL_REDIRECT_PATH", "another model than preflight has looked at"),
    _withheld(r"VLLM_ALLOW_LONG_MAX_MODEL_LEN", "a length that the model does not support"),
    _withheld(r"VLLM_USAGE_STATS_SERVER", "no usage data is sent"),
    _withheld(r"VLLM_PORT", "a Kubernetes service named vllm sets it, and vLLM would not start"),
    _withheld(r"VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME", "two engines would share memory"),
    _withheld(r"VLLM_(DP|RAY|USE_RAY|ELASTIC_EP|NIXL|MOONCAKE|MORIIO)_.*", "engines over several hosts; this is one"),
    _withheld(r"VLLM_RANDOMIZE_DP_DUMMY_INPUTS", "engines over several hosts; this is one"),
    _withheld(r"VLLM_MARLIN_INPUT_DTYPE", "changes the answers: SERVEKIT_FP8_ACTIVATIONS sets it", final=True),
    # vLLM 0.20.2: what may be chosen
    _kept(r"VLLM_PLUGINS", "can only narrow which installed plugins are loaded"),
    _kept(r"VLLM_(CACHE|CONFIG)_ROOT|VLLM_ASSETS_CACHE.*|VLLM_XLA_.*|VLLM_RPC_BASE_PATH", "folders"),
    _kept(r"VLLM_TUNED_CONFIG_FOLDER|VLLM_CUDA_COMPATIBILITY_PATH", "folders"),
    _kept(r"VLLM_(NCCL|CUDART)_(SO_PATH|INCLUDE_PATH)", "where CUDA's libraries are, as LD_LIBRARY_PATH"),
    _kept(r"VLLM_HOST_IP|VLLM_PROCESS_NAME_PREFIX", "which of the host's addresses, which name"),
    _kept(r"VLLM_(NO_USAGE_STATS|DO_NOT_TRACK)", "servekit sets the first itself"),
    _kept(r"VLLM_USAGE_SOURCE", "vLLM's own image sets it; no usage data is sent"),
    _kept(r"VLLM_LOG_.*|VLLM_DISABLE_LOG_LOGO|VLLM_RINGBUFFER_WARNING_INTERVAL", "figures in the log, no content"),
    _kept(r"VLLM_.*_(TIMEOUT(_S|_SECONDS|_KEEP_ALIVE)?|MAX_RETRIES)", "how long something may take"),
    _kept(r"VLLM_MEDIA_(CONNECTOR|URL_ALLOW_REDIRECTS)", "servekit sets them itself"),
    _kept(r"VLLM_MEDIA_LOADING_THREAD_COUNT|VLLM_MM_HASHER_ALGORITHM", "how images are read; each hash is a good one"),
    _kept(r"VLLM_(MAX_AUDIO_CLIP_FILESIZE_MB|VIDEO_LOADER_BACKEND)", "audio and video are closed"),
    _kept(r"VLLM_MAX_N_SEQUENCES|VLLM_XGRAMMAR_CACHE_MB|VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "the guard's limits hold"),
    _kept(r"VLLM_MQ_MAX_CHUNK_BYTES_MB|VLLM_MSGPACK_ZERO_COPY_THRESHOLD", "the processes' own messages"),
    _kept(r"VLLM_(WORKER_MULTIPROC_METHOD|ENABLE_V1_MULTIPROCESSING)", "the processes' own start"),
    _kept(r"VLLM_SYSTEM_START_DATE|VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "harmless"),
    _kept(
        r"VLLM_(TARGET_DEVICE|MAIN_CUDA_VERSION|USE_PRECOMPILED|SKIP_PRECOMPILED_VERSION_SUFFIX|DOCKER_BUILD_CONTEXT)",
        "read when vLLM is built",
    ),
    _kept(r"VLLM_(CPU|ROCM|TPU|XPU|ZENTORCH)_.*", "one kind of processor's tuning"),
    _kept(
        r"VLLM_(USE|DISABLED?|ENABLE|FORCE|SKIP|ALLREDUCE|ALLOW_CHUNKED_LOCAL_ATTN)_.*"
        r"|VLLM_.*(DEEP_?GEMM|DEEPEP|FLASHINFER|MARLIN|HUMMING|MXFP4|NVFP4|GEMM_BACKEND|FP4_MOE|PRECISION|THRESHOLD).*"
        r"|VLLM_(LORA|WEIGHT_OFFLOADING|COMPILE_CACHE|MEMORY_PROFILER|SPARSE_INDEXER)_.*"
        r"|VLLM_(BATCH_INVARIANT|COMPUTE_NANS_IN_LOGITS|MLA_DISABLE|KV_CACHE_LAYOUT|SSM_CONV_STATE_LAYOUT)"
        r"|VLLM_(PP_LAYER_PARTITION|DBO_COMM_SMS)",
        "kernels, compilation and memory: how vLLM computes; servekit still checks the contract in the running engine",
    ),
    _withheld(r"VLLM_.*", "vLLM 0.20.2 does not know it"),
)
"""The first row that matches decides."""

_ROWS: Final = tuple((re.compile(row.names), row) for row in TABLE)


def verdict(name: str) -> Row | None:
    """Return the row that decides about a variable; None for one without a row, which passes."""
    return next((row for pattern, row in _ROWS if pattern.fullmatch(name)), None)


def withheld(names: Iterable[str], passed: Iterable[str] = ()) -> dict[str, str]:
    """Return which of these variables do not reach the engine, each with the reason; those in `passed` do."""
    return {
        name: row.why
        for name in sorted(names)
        if (row := verdict(name)) and not row.passes and (row.final or name not in passed)
    }


def passing(environ: Mapping[str, str], passed: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables of `environ` that reach the engine."""
    out = withheld(environ, passed)
    return {name: value for name, value in environ.items() if name not in out}
