"""The real engine against preflight: what it rejects, what it silently serves wrong, and what its cache holds."""

import contextlib
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.memory.memory_plan import plan_memory
from servekit.profile import EngineArguments, resolve

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LAYER = "model.language_model.layers"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
VALUES: dict[str, Any] = {
    "max-model-len": 20_000,
    "max-num-seqs": 16,
    "max-num-batched-tokens": 4096,
    "limit-mm-per-prompt": {"image": 3, "audio": 0, "video": 0},
}
ARGUMENTS = resolve(VALUES, target="cpu")
START_S = 400


class Engine:
    """A started `vllm serve`: its port, its log, and its exit code after its end."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def comes_up(self) -> bool:
        """Wait until it serves or has ended; return whether it serves."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            with (
                contextlib.suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=60) as answer,
            ):
                return bool(answer.status == 200)
            time.sleep(0.3)
        return False

    def metrics(self) -> str:
        """Return the text of /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            return str(answer.read().decode())


Serve = Callable[..., AbstractContextManager[Engine]]


@pytest.fixture
def serve(root: Path, tmp_path: Path, free_port: int) -> Serve:
    """Start the real engine on a folder and end it, with everything it started, afterwards."""
    program = root / ".venv-engine" / "bin" / "vllm"
    if not program.exists():
        pytest.skip("needs .venv-engine")

    @contextlib.contextmanager
    def start(folder: Path, *more: str) -> Iterator[Engine]:
        log = tmp_path / "engine.log"
        argv = [
            *(program, "serve", folder, "--host", "127.0.0.1", "--port", str(free_port)),
            *("--max-model-len", "20000", "--max-num-seqs", "16", "--max-num-batched-tokens", "4096"),
            *("--limit-mm-per-prompt", '{"image": 3, "audio": 0, "video": 0}'),
            *("--enforce-eager", "--skip-mm-profiling", *more),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in argv],
                env=os.environ | ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Engine(process, free_port, log)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return start


def test_missing_image_length_stops_the_engine(patient: Any, serve: Serve) -> None:
    """`vision-config`: without default_output_length the engine exits during its start."""
    patient.config(lambda config: config["vision_config"].pop("default_output_length"))
    assert patient.names() == ["vision-config"]
    with serve(patient.folder) as engine:
        assert not engine.comes_up()
        assert "default_output_length" in engine.log.read_text()


def test_dropped_projections_stop_the_engine(patient_bf16: Any, serve: Serve) -> None:
    """`kv-shared-weights`: the engine rejects an unquantized checkpoint without the unused projections."""
    dropped = f"{LAYER}.5.self_attn.k_norm.weight"
    patient_bf16.tensors(lambda tensors: tensors.pop(dropped))
    assert patient_bf16.names(arguments=ARGUMENTS) == ["kv-shared-weights"]
    with serve(patient_bf16.folder) as engine:
        assert not engine.comes_up()
        assert "not initialized from" in engine.log.read_text()


def test_unquantized_layer_stops_the_engine(patient: Any, serve: Serve) -> None:
    """`tensor-unquantized`: the engine cannot load a plain weight where it expects a packed one."""
    module = f"{LAYER}.0.mlp.down_proj"

    def unpack(tensors: dict[str, Any]) -> None:
        _, (rows, columns), _ = tensors[f"{module}.weight_packed"]
        for suffix in ("weight_packed", "weight_scale", "weight_shape"):
            del tensors[f"{module}.{suffix}"]
        tensors[f"{module}.weight"] = ("BF16", [rows, columns * 8], bytes(rows * columns * 16))

    patient.tensors(unpack)
    assert patient.names() == ["tensor-unquantized"]
    with serve(patient.folder) as engine:
        assert not engine.comes_up()
        assert "down_proj.weight" in engine.log.read_text()


def test_missing_tensor_of_a_quantized_model_is_served_silently(patient: Any, serve: Serve) -> None:
    """`tensor-missing`: the engine silently serves a quantized checkpoint without a layer's weights.

    The same engine's cache holds what the memory plan says, within 2 %.
    """
    missing = [f"{LAYER}.2.mlp.down_proj.{suffix}" for suffix in ("weight_packed", "weight_scale", "weight_shape")]
    patient.tensors(lambda tensors: [tensors.pop(name) for name in missing])
    assert patient.names() == ["tensor-missing"]
    with serve(patient.folder) as engine:
        assert engine.comes_up(), engine.log.read_text()[-3000:]
        assert "down_proj" not in engine.log.read_text()
        _compare_with_plan(patient, engine)


def test_plan_agrees_with_an_unquantized_engine(demo_bf16: Path, patient_bf16: Any, serve: Serve) -> None:
    """The plan's pool for the unquantized model, with another block size and shorter requests, matches the engine's."""
    with serve(demo_bf16, "--block-size", "32", "--max-model-len", "3000") as engine:
        assert engine.comes_up(), engine.log.read_text()[-3000:]
        _compare_with_plan(patient_bf16, engine, replace(ARGUMENTS, block_size=32, max_model_len=3000))


def _compare_with_plan(patient: Any, engine: Engine, arguments: EngineArguments = ARGUMENTS) -> None:
    facts, _ = patient.inspect()
    assert facts is not None
    assert facts.config.text is not None
    plan = plan_memory(facts.config.text, 0, arguments, None, kv_space_gib=1)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', _line(engine.metrics(), "vllm:cache_config_info")))
    log = engine.log.read_text()
    tokens = int(re.findall(r"KV cache size: ([\d,]+) tokens", log)[0].replace(",", ""))
    requests = float(re.findall(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", log)[0])
    assert plan.blocks == pytest.approx(int(labels["num_gpu_blocks"]), rel=0.02)
    assert plan.pool_tokens == pytest.approx(tokens, rel=0.02)
    assert plan.full_requests == pytest.approx(requests, rel=0.02)
    print(f"plan {plan.blocks} blocks {plan.pool_tokens} tokens {plan.full_requests:.2f} requests; engine {labels}")
    print(f"engine {tokens} tokens {requests} requests")


def _line(metrics: str, name: str) -> str:
    return next(line for line in metrics.splitlines() if line.startswith(name))
