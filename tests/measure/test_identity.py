"""What a record says about the endpoint: read where it can be read, null where it cannot."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.measure.recording.identity import describe, endpoint_gpus, engine_here
from servekit.measure.recording.sampling import endpoint_processes
from servekit.nvml import Nvml
from tests.fake_nvml import GPU, FakeNvml

ARGV = ("serve", "model", "--served-model-name", "m", "--port", "8123", "--enforce-eager")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with the engine's command line, in its own folder."""
    waiting = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *ARGV]
    with subprocess.Popen(waiting, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # /proc has the command line only once the program runs
        yield process
        process.kill()


def status(pid: int | None, model: str = "model") -> dict[str, Any]:
    """Return a /status of an engine with this process id."""
    plan = {"target": "cuda", "profile": "vllm_config.yaml", "model": model, "argv": ["vllm", *ARGV], "deviations": []}
    return {"engine_pid": pid, "plan": plan, "contract": [], "endpoint": "http://127.0.0.1:8123/v1"}


def sha256(data: bytes) -> str:
    """Return the hash as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def test_files_as_the_engine_sees_them(tmp_path: Path, engine: "subprocess.Popen[bytes]") -> None:
    """Profile and checkpoint are read from the engine's folder; a file in the hub's cache has its hash as its name."""
    (tmp_path / "vllm_config.yaml").write_text("max-num-seqs: 8\n")
    blobs, model = tmp_path / "blobs", tmp_path / "model"
    blobs.mkdir()
    model.mkdir()
    (model / "config.json").write_text("{}")
    header = (2).to_bytes(8, "little") + b"{}"
    with (model / "big.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(65 << 20)
    (blobs / ("ab" * 32)).write_bytes(b"weights")
    (model / "model.safetensors").symlink_to(blobs / ("ab" * 32))
    found = describe(status(engine.pid), {}, [], {}, environ={})
    assert found.profile_sha256 == sha256(b"max-num-seqs: 8\n")
    assert found.checkpoint is not None
    assert found.checkpoint.bytes_on_disk == (65 << 20) + 2 + 7
    told = {each.name: (each.sha256, each.of) for each in found.checkpoint.files}
    assert told == {
        "config.json": (sha256(b"{}"), "content"),
        "big.safetensors": (sha256(header), "header"),
        "model.safetensors": ("ab" * 32, "hub"),
    }


def test_a_hub_model_has_its_commit(tmp_path: Path, engine: "subprocess.Popen[bytes]") -> None:
    """A model in the hub's cache is told with the commit of its snapshot."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    served = status(engine.pid, "owner/name") | {"commit": "c" * 40}
    found = describe(served, {}, [], {}, environ={"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert found.checkpoint is not None
    assert found.checkpoint.commit == "c" * 40
    assert [each.name for each in found.checkpoint.files] == ["config.json"]


@pytest.mark.parametrize("pid", [None, 1, os.getpid(), 2**22 + 1], ids=("none", "init", "own", "absent"))
def test_an_engine_that_is_not_here(pid: int | None) -> None:
    """Another process with the engine's number, as from a container, is not the engine: its files are not read."""
    assert engine_here(status(pid)) is None
    found = describe(status(pid), {}, [], {}, environ={})
    assert found.profile_sha256 is None
    assert found.checkpoint is not None
    assert found.checkpoint.model_dump() == {"model": "model", "commit": None, "bytes_on_disk": None, "files": []}


def test_whose_process_it_is() -> None:
    """A process below the engine's is the endpoint's; without the engine's number, what was there at first is."""
    is_own = endpoint_processes(os.getppid(), ())
    assert is_own(os.getpid())
    assert is_own(os.getppid())
    assert not is_own(1)
    assert not is_own(2**22 + 1)
    assert [endpoint_processes(None, {7})(pid) for pid in (7, 8)] == [True, False]


def test_gpus_of_the_endpoint() -> None:
    """servekit names its GPUs; without that, on this host, they are those that CUDA sees; on the CPU there are none."""
    nvml = Nvml(FakeNvml(count=2))
    page = {
        f'servekit_gpu_memory_total_bytes{{gpu="{name}",name="NVIDIA L4"}}': "1.0" for name in (GPU, "GPU-elsewhere")
    }
    here, elsewhere = endpoint_gpus(page, status(1), local=True, nvml=nvml)
    assert (here.uuid, here.driver, here.memory_bytes) == (GPU, "580.95.05", 23_034 << 20)
    assert (elsewhere.uuid, elsewhere.name, elsewhere.driver) == ("GPU-elsewhere", "NVIDIA L4", None)
    assert [gpu.uuid for gpu in endpoint_gpus({}, {}, local=True, nvml=nvml)] == [GPU, "GPU-1"]
    assert endpoint_gpus({}, {}, local=False, nvml=nvml) == []
    on_cpu = {"plan": {"target": "cpu"}}
    assert endpoint_gpus({}, on_cpu, local=True, nvml=nvml) == []
