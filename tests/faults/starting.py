"""Faults of a start: the engine ends, hangs, or runs with other values than planned."""

import json
import signal

from tests.faults.fault import NOT_STARTED, STOPPED_EARLY, Fault
from tests.faults.launch import Launch
from tests.faults.provoke import send

# What vLLM 0.20.2 or torch prints, and the parts of it and of the remedy that the reason must contain.
_CAUSES = {
    "memory of the card": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB (lower max-model-len",
    ),
    "no room for the cache": (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` (lower max-model-len",
    ),
    "memory held by others": (
        "ValueError: Free memory on device cuda:0 (3.1/22.05 GiB) on startup is less than desired GPU memory",
        "(another process holds memory on this GPU",
    ),
    "port": (
        "OSError: [Errno 98] Address already in use",
        "OSError: [Errno 98] Address already in use (another program listens there: choose another port",
    ),
    "missing file": (
        "FileNotFoundError: [Errno 2] No such file or directory: '/m/model-00002-of-00003.safetensors'",
        "'/m/model-00002-of-00003.safetensors' (a file of the checkpoint or the engine is missing)",
    ),
    "shapes": (
        "AssertionError: Attempted to load weight (torch.Size([64, 32])) into parameter (torch.Size([64, 64]))",
        "into parameter (torch.Size([64, 64])) (the weights do not fit config.json)",
    ),
    "driver": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)",
        "(found version 11040) (check the NVIDIA driver with nvidia-smi)",
    ),
}

# Values that the engine may run with instead of the planned ones, by the name of the contract's item.
_LIES: dict[str, dict[str, object]] = {
    "kv-cache-dtype": {"kv_cache_dtype": "fp8_e5m2"},
    "quantization": {"quantization": None},
    "max-num-seqs": {"max_num_seqs": 256},
    "attention-backend": {"attention_backend": "FLASH_ATTN"},
    "structured-outputs-config.backend": {"structured_outputs_backend": "auto"},
    "served-model-name": {"served_model_names": ["another"]},
    "image limit": {"limit_mm_per_prompt": {"image": 999, "audio": 0, "video": 0}},
    "audio limit": {"limit_mm_per_prompt": {"image": 3, "audio": 999, "video": 0}},
    "video limit": {"limit_mm_per_prompt": {"image": 3, "audio": 0, "video": 999}},
    "enable-prefix-caching": {"enable_prefix_caching": False},
    "enable-chunked-prefill": {"enable_chunked_prefill": False},
    "max-model-len": {"max_model_len": 131072},
    "max-num-batched-tokens": {"max_num_batched_tokens": 2048},
}


def send_twice_while_loading(launch: Launch) -> None:
    """Send SIGTERM twice in a row."""
    launch.until_says("starting (warm-up)")
    for _ in range(2):
        launch.process.send_signal(signal.SIGTERM)


FAULTS = (
    *(
        Fault(f"start: fails, {what}", NOT_STARTED, 4, reason, faults=("--fail-with", printed))
        for what, (printed, reason) in _CAUSES.items()
    ),
    Fault(
        "start: ends with 0",
        *(NOT_STARTED, 4, "the engine ended before it was ready, exit code 0"),
        faults=("--end-loading",),
    ),
    Fault(
        "start: ends with 1 without a word",
        *(NOT_STARTED, 4, "the engine ended before it was ready, exit code 1: no reason found in its output"),
        faults=("--end-loading", "--exit-code", "1"),
    ),
    Fault(
        "start: killed by SIGKILL",
        *(NOT_STARTED, 4, "before it was ready, killed by signal 9 (SIGKILL): perhaps out of memory"),
        faults=("--end-loading", "--die-by", "9"),
    ),
    Fault(
        "start: killed by SIGSEGV",
        *(NOT_STARTED, 4, "before it was ready, killed by signal 11 (SIGSEGV)"),
        faults=("--end-loading", "--die-by", "11"),
    ),
    Fault(
        "start: never listens",
        *(NOT_STARTED, 4, "not ready within 1.5 s, last seen in phase warm-up"),
        faults=("--never-listen", "--lose-sigterm"),
        flags=("--start-s", "1.5"),
    ),
    Fault(
        "start: /health never green",
        *(NOT_STARTED, 4, "not ready within 1.5 s, last seen in phase warm-up"),
        faults=("--sick",),
        flags=("--start-s", "1.5"),
    ),
    Fault(
        "start: the first token never comes",
        *(NOT_STARTED, 4, "not ready within 1.5 s, last seen in phase verify"),
        faults=("--wedge",),
        flags=("--start-s", "1.5"),
    ),
    Fault(
        "start: no token is made",
        *(NOT_STARTED, 4, "the engine generated 0 tokens instead of 1"),
        faults=("--no-token",),
    ),
    Fault(
        "start: an engine without its guard",
        *(NOT_STARTED, 4, "/_servekit/effective: HTTP 404"),
        faults=("--no-guard",),
    ),
    Fault(
        "contract: /v1/models has another name",
        *(NOT_STARTED, 7, "/v1/models lists another, not gemma4-demo"),
        faults=("--wrong-name",),
    ),
    *(
        Fault(
            f"contract: {item}",
            *(NOT_STARTED, 7, f"the contract is broken: {item}: wanted "),
            faults=("--runs-with", json.dumps(lie)),
        )
        for item, lie in _LIES.items()
    ),
    *(
        Fault(
            f"{number.name} while it loads, which loses it",
            *(STOPPED_EARLY, 0, f"{number.name} during the start: the engine was killed"),
            faults=("--never-listen", "--lose-sigterm"),
            provoke=send(number, at="starting (warm-up)"),
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ),
    Fault(
        "SIGTERM twice while it loads",
        *(STOPPED_EARLY, 0, "SIGTERM during the start: the engine was killed"),
        faults=("--never-listen", "--lose-sigterm"),
        provoke=send_twice_while_loading,
    ),
)
