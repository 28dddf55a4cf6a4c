"""The host against the profile, with fake NVML answers and a small fake /proc."""

import dataclasses
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servekit.nvml import GpuFacts, GpuSurvey
from servekit.preflight.findings import Finding
from servekit.preflight.host.gpu_rules import gpu_model
from servekit.preflight.host.gpus import pinned, visible_gpus
from servekit.preflight.host.host_facts import (
    COMPILE_CACHE_BYTES,
    HostFacts,
    _check_libraries,
    inspect_host,
)
from servekit.preflight.host.host_memory import host_memory
from servekit.preflight.memory.gpu_models import GIB, MIB
from servekit.preflight.start import Start
from servekit.profile import resolve
from servekit.settings import Target

L4 = GpuFacts(
    index=0,
    uuid="GPU-aaaa-1",
    name="NVIDIA L4",
    memory_bytes=23_034 * MIB,
    free_bytes=22_500 * MIB,
    capability=(8, 9),
    reserved_bytes=470 * MIB,
    uncorrected_errors=0,
)
SURVEY = GpuSurvey("580.95.05", (13, 0), (L4,))
GOOD_CPU = "flags : fpu avx avx2 avx512f avx512_bf16\n"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A root folder with a proc of 32 GiB and a capable CPU."""
    (tmp_path / "root/proc").mkdir(parents=True)
    (tmp_path / "root/proc/meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 31457280 kB\nHugePages: 0\n")
    (tmp_path / "root/proc/cpuinfo").write_text(f"processor : 0\n{GOOD_CPU}")
    return tmp_path / "root"


def inspect(host: Path, target: str = "cuda", **options: Any) -> tuple[HostFacts, tuple[Finding, ...]]:
    """Inspect the fake host."""
    about = {name: options.pop(name) for name in ("weights_bytes", "downloads", "environ") if name in options}
    values = options.pop("values", {"gpu-memory-utilization": 0.9})
    start = Start(
        **{
            "target": Target(target),
            "profile": Path("p.yaml"),
            "model": "m",
            "values": values,
            "arguments": resolve(values, target=target),
            "addresses": {},
            "cache_dir": host,
            "survey": SURVEY if target == "cuda" else None,
            **options,
        }
    )
    return inspect_host(start, root=host, **{"environ": {}, **about})


def names(host: Path, target: str = "cuda", **options: Any) -> list[str]:
    """Return the names of the findings."""
    return [finding.name for finding in inspect(host, target, **options)[1]]


def with_gpu(**changes: Any) -> Any:
    """A survey of one altered L4."""
    return dataclasses.replace(SURVEY, gpus=(dataclasses.replace(L4, **changes),))


def test_an_l4_alone_is_fine(host: Path) -> None:
    """A healthy, idle L4 with a new driver has no findings; the plan counts the memory that a program may use."""
    facts, findings = inspect(host)
    assert findings == ()
    assert gpu_model(L4).usable_bytes / GIB == pytest.approx(22.03, abs=0.01)
    assert facts.as_dict()["gpu"]["capability"] == "8.9"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"capability": (8, 6)}, []),
        ({"free_bytes": 10 * GIB, "processes": {7: 0}}, ["gpu-memory", "gpu-processes"]),
        ({"processes": {7: 0, 8: 0}}, ["gpu-processes"]),
        ({"uncorrected_errors": 2}, ["gpu-ecc"]),
        ({"uncorrected_errors": None}, []),
        ({"slowdowns": ("hardware thermal slowdown",)}, ["gpu-throttled"]),
        ({"mig": True}, ["gpu-mig"]),
    ],
)
def test_each_fault_of_a_gpu_is_found(host: Path, changes: dict[str, Any], expected: list[str]) -> None:
    """An old, busy, broken, hot or partitioned GPU is reported as such."""
    assert names(host, survey=with_gpu(**changes)) == expected


def test_an_explicit_cache_frees_nothing(host: Path) -> None:
    """vLLM compares free memory with its share even if kv-cache-memory-bytes sets the cache."""
    values = {"gpu-memory-utilization": 0.9, "kv-cache-memory-bytes": GIB}
    assert names(host, survey=with_gpu(free_bytes=10 * GIB), values=values) == ["gpu-memory"]


def test_old_driver_is_found(host: Path) -> None:
    """A driver of CUDA 12 cannot run an engine built for CUDA 13."""
    assert names(host, survey=dataclasses.replace(SURVEY, driver="550.54", cuda=(12, 4))) == ["gpu-driver"]


@pytest.mark.parametrize("survey", [None, dataclasses.replace(SURVEY, gpus=())])
def test_target_cuda_needs_a_gpu(host: Path, survey: Any) -> None:
    """Without NVML or without a GPU, target cuda is an error."""
    facts, (finding,) = inspect(host, survey=survey)
    assert (finding.name, facts.gpu) == ("gpu-missing", None)


def test_a_gpu_that_cannot_be_read_is_told(host: Path) -> None:
    """A lost GPU is only a warning if there is a healthy one."""
    survey = dataclasses.replace(SURVEY, unreadable=((1, "GPU is lost"),))
    assert names(host, survey=survey) == ["gpu-unreadable"]
    lost = dataclasses.replace(survey, gpus=())
    assert names(host, survey=lost) == ["gpu-unreadable", "gpu-missing"]


TWO = dataclasses.replace(SURVEY, gpus=(L4, dataclasses.replace(L4, index=1, uuid="GPU-bbbb-2")))


@pytest.mark.parametrize(
    ("setting", "visible"),
    [
        (None, [0, 1]),
        ("0,1", [0, 1]),
        ("1,0", [1, 0]),
        ("1 ,0", [1, 0]),
        ("0,7,1", [0]),
        ("1,", [1]),
        ("01", [1]),
        ("+1", [1]),
        ("-0", [0]),
        ("\t1", [1]),
        (" 1", [1]),
        ("1abc", [1]),
        ("1;0", [1]),
        ("1.0", [1]),
        ("0x1", [0]),
        ("GPU-bbbb-2", [1]),
        ("GPU-bb", [1]),
        ("GPU-BBBB-2", [1]),
        ("GPU-bbbb-2 ", [1]),
        (" GPU-bbbb-2", []),
        ("gpu-bbbb-2", []),
        ("GPU-bbbb-2,0", [1]),
        ("0,GPU-bbbb-2", [0]),
        ("0,0", []),
        ("GPU-aaaa-1,GPU-aaaa-1", []),
        ("GPU-", []),
        ("GPU", []),
        ("bbbb-2", []),
        ("MIG-GPU-bbbb-2/1/0", []),
        *((word, []) for word in ("", "-1", "++1", "+ 1", "abc", "all", "none", ",1", "NoDevFiles")),
    ],
)
def test_visibility_is_cudas(setting: str | None, visible: list[int]) -> None:
    """For each CUDA_VISIBLE_DEVICES the GPUs are those that a host with two H200 and CUDA 13.0 showed."""
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert [gpu.index for gpu in visible_gpus(TWO, environ)] == visible


@pytest.mark.parametrize(
    ("setting", "number"), [({"CUDA_VISIBLE_DEVICES": "GPU-bb"}, "1"), ({"CUDA_VISIBLE_DEVICES": " 1x"}, "1"), ({}, "")]
)
def test_engine_gets_the_gpu_that_was_looked_at(setting: dict[str, str], number: str) -> None:
    """The engine gets the GPU's number in NVML's order, whatever the operator wrote, and no choice where there is none.

    vLLM 0.20.2 ends with `invalid literal for int()` for a UUID, and CUDA's own order begins with the fastest GPU.
    """
    chosen = {"CUDA_VISIBLE_DEVICES": number} if number else {}
    assert pinned(TWO, setting) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} | chosen
    assert pinned(None, setting) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert pinned(SURVEY, {}) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.engine
def test_vllm_takes_numbers_only(root: Path) -> None:
    """The real vLLM finds the GPU of a number, and fails for a UUID: hence the number that the engine gets."""
    program = (
        "import os; from vllm.platforms.interface import Platform\n"
        "Platform.device_control_env_var = 'CUDA_VISIBLE_DEVICES'\n"
        "for chosen in ('1', 'GPU-bbbb-2'):\n"
        "    os.environ['CUDA_VISIBLE_DEVICES'] = chosen\n"
        "    print(Platform.device_id_to_physical_device_id(0))"
    )
    command = [str(root / ".venv-engine/bin/python"), "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["1"]
    assert "ValueError: invalid literal for int() with base 10: 'GPU-bbbb-2'" in done.stderr


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "0"}, "as nvidia-smi does; unset it"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-bbbb/1/0"}, "cannot be given an instance of a GPU (MIG)"),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, "0 of 2 GPUs are visible, CUDA_VISIBLE_DEVICES is '0,0'"),
    ],
)
def test_choice_that_the_engine_would_understand_otherwise(host: Path, environ: dict[str, str], told: str) -> None:
    """Another order of the GPUs, and an instance of one, are rejected, because another GPU would be served."""
    _, (finding,) = inspect(host, survey=TWO, environ=environ)
    assert finding.name == "gpu-visible"
    assert told in str(finding)
    assert names(host, environ={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == [], "with one GPU every order is the same"


def test_exactly_one_gpu_must_be_visible(host: Path) -> None:
    """Two GPUs are an error whose remedy names one of them; choosing one resolves it."""
    _, (finding,) = inspect(host, survey=TWO)
    assert finding.name == "gpu-visible"
    assert "CUDA_VISIBLE_DEVICES=GPU-aaaa-1" in finding.remedy
    facts, findings = inspect(host, survey=TWO, environ={"CUDA_VISIBLE_DEVICES": "1"})
    assert findings == ()
    assert facts.gpu is not None
    assert facts.gpu.index == 1


def told_about_port(host: Path, address: tuple[str, int]) -> str:
    """Return the one finding about an address, which is about its flag."""
    _, (finding,) = inspect(host, addresses={"--port": address})
    assert (finding.name, finding.subject) == ("port-taken", "--port")
    return str(finding)


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
def test_taken_port_is_found(host: Path, family: str) -> None:
    """A port in use is an error that names the process that listens there, and how to end it."""
    with socket.socket(socket.AF_INET6 if ":" in family else socket.AF_INET) as other:
        other.bind((family, 0))
        other.listen()
        told = told_about_port(host, (family, other.getsockname()[1]))
    assert f"Address already in use, by process {os.getpid()} (" in told
    assert f"stop that process (kill {os.getpid()}), or choose another port" in told


def test_port_that_servekit_has_itself(host: Path) -> None:
    """A port of a running endpoint is told as such: `check` beside it names no stranger."""
    program = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1]); sys.stdin.read()"
    )
    command = [sys.executable, "-uc", program, "serve", "--middleware", "servekit_guard.entry.Guard"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        told = told_about_port(host, ("127.0.0.1", int(other.stdout.readline())))
        other.communicate("\n")
    assert f"by an endpoint of servekit (process {other.pid}); stop that endpoint, or choose another port" in told


@pytest.mark.parametrize(("address", "why"), [("192.0.2.1", "Cannot assign requested address"), ("a..b", "Name or")])
def test_address_that_is_not_of_this_host(host: Path, address: str, why: str) -> None:
    """For an address of another host, or of none, the remedy is another address, not another port."""
    told = told_about_port(host, (address, 8000))
    assert why in told
    assert "; choose an address of this host" in told


def test_port_for_which_a_right_is_missing(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    """A port below 1024 needs a right, and no program must be stopped for it."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert "choose a port from 1024 on" in told_about_port(host, ("127.0.0.1", 443))


def test_cache_folder_must_be_a_folder(host: Path) -> None:
    """A file at the cache's path is an error; a folder that does not exist yet is not."""
    assert names(host, cache_dir=host / "not" / "yet" / "made") == []
    assert names(host, cache_dir=host / "proc" / "meminfo" / "cache") == ["cache-folder"]


def test_cache_must_have_room(host: Path) -> None:
    """A download must fit on its disk, together with the compile cache if both are on the same disk."""
    assert names(host, downloads={host / "hub": 1 << 60}) == ["cache-space"]
    assert names(host, downloads={host / "hub": 1}) == []
    free = shutil.disk_usage(host).free
    assert names(host, downloads={host / "hub": free - COMPILE_CACHE_BYTES // 2}) == ["cache-space"]
    assert names(host, downloads={host / "proc" / "meminfo" / "hub": 1}) == ["cache-folder"]


def test_cpu_with_avx2_only_is_slow(host: Path) -> None:
    """AVX2 is required, AVX-512 BF16 is recommended."""
    assert names(host, "cpu") == []
    (host / "proc/cpuinfo").write_text("flags : fpu avx avx2\n")
    assert [str(finding.severity) for finding in inspect(host, "cpu")[1]] == ["note"]
    (host / "proc/cpuinfo").write_text("flags : fpu avx\n")
    assert [str(finding.severity) for finding in inspect(host, "cpu")[1]] == ["error"]


def test_cpu_engine_must_fit_the_memory(host: Path) -> None:
    """Weights and KV cache must fit into the available memory."""
    assert names(host, "cpu", weights_bytes=20 * GIB, kv_space_gib=4) == []
    assert names(host, "cpu", weights_bytes=20 * GIB, kv_space_gib=40) == ["cpu-memory"]


V2 = ("", "memory.max", "memory.current", "")
V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def control_group(host: Path, version: tuple[str, str, str, str], path: str, *gib: float) -> None:
    """Write a control group with a limit, its usage, and how much of that is active and inactive page cache."""
    folder, limit, usage, prefix = version
    limit_gib, used, active, inactive = gib
    group = host / "sys/fs/cgroup" / folder / path
    group.mkdir(parents=True, exist_ok=True)
    (group / limit).write_text(f"{int(limit_gib * GIB)}\n")
    (group / usage).write_text(f"{int(used * GIB)}\n")
    stat = f"anon 1\ninactive_file 7\n{prefix}inactive_file {int(inactive * GIB)}\n" if prefix else ""
    stat = stat or f"anon 1\ninactive_file {int(inactive * GIB)}\n"
    (group / "memory.stat").write_text(f"{stat}{prefix}active_file {int(active * GIB)}\n")


@pytest.mark.parametrize("version", [V1, V2])
def test_control_group_limits_the_memory(host: Path, version: tuple[str, str, str, str]) -> None:
    """A container's limit counts, with either version of control groups, and page cache in its usage does not."""
    control_group(host, version, "", 8, 3, 0, 0)
    assert host_memory(host) == (8 * GIB, 5 * GIB)
    control_group(host, version, "", 8, 7.5, 4, 2)
    assert host_memory(host) == (8 * GIB, 6.5 * GIB)


@pytest.mark.parametrize(("version", "line"), [(V2, "0::/system.slice/a"), (V1, "4:memory:/system.slice/a")])
def test_the_tightest_group_on_the_way_counts(host: Path, version: tuple[str, str, str, str], line: str) -> None:
    """A service's own group and the groups above it are read, not only the root of the mount."""
    (host / "proc/self").mkdir()
    (host / "proc/self/cgroup").write_text(f"9:cpu,cpuacct:/other\n{line}\n")
    control_group(host, version, "system.slice/a", 16, 2, 0, 0)
    assert host_memory(host) == (16 * GIB, 14 * GIB)
    control_group(host, version, "system.slice", 12, 9, 0, 0)
    assert host_memory(host) == (12 * GIB, 3 * GIB)
    control_group(host, version, "other", 1, 1, 0, 0)
    assert host_memory(host) == (12 * GIB, 3 * GIB)


def test_unlimited_control_group_does_not_count(host: Path) -> None:
    """`max` and limits above the memory are no limits."""
    path = host / "sys/fs/cgroup/memory.max"
    path.parent.mkdir(parents=True)
    path.write_text("max\n")
    assert host_memory(host) == (32 * GIB, 30 * GIB)


def test_host_without_proc_is_no_error(tmp_path: Path) -> None:
    """Facts that cannot be read give no findings."""
    assert host_memory(tmp_path) == (0, 0)
    assert names(tmp_path, "cpu") == []


def test_small_shared_memory_is_told(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's default of 64 MiB is less than the CPU engine's queues need."""
    (host / "dev/shm").mkdir(parents=True)
    usage = type("Usage", (), {"total": 64 * MIB, "free": 1 << 40})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert names(host, "cpu") == ["shared-memory"]
    assert names(host, "cuda") == []


def test_missing_library_of_the_cpu_engine() -> None:
    """A missing libnuma is a finding, because the CPU engine would fail late and without a reason."""

    def missing(name: str) -> object:
        raise OSError(name)

    assert [finding.name for finding in _check_libraries(missing)] == ["cpu-library"]
    assert list(_check_libraries(lambda name: name)) == []
