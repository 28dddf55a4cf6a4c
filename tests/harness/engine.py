"""The CPU engine without servekit: vLLM's own server on a small model, with or without the guard in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.harness.endpoint import clean_environment
from tests.harness.ports import free_port
from tests.harness.server import ENGINE, Server

CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
"""No compilation, no usage reports, no network."""


def bare_engine(
    model: Path, log: Path, flags: Sequence[str], environ: Mapping[str, str], *, program: str | Path = ENGINE
) -> Server:
    """Return vLLM's server for a checkpoint as `demo`, eager and without the profiling run; not started yet."""
    port = free_port()
    argv = [
        *(program, "serve", model, "--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--skip-mm-profiling", "--limit-mm-per-prompt", '{"image": 3, "audio": 0, "video": 0}'),
        *flags,
    ]
    return Server(argv, clean_environment() | CPU_ENVIRONMENT | dict(environ), port, model="demo", log=log)
