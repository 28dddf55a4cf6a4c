"""`servekit measure` around a real command, against a server with servekit's status and metrics."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ConfigurationError
from servekit.measure.record import Record
from servekit.measure.recording.progress_line import ProgressLine
from servekit.measure.recording.sampling import GpuReader, Scraper, Ticker
from servekit.measure.recording.session import Job, measure
from servekit.measure.report.runs import load_run, verify_run
from servekit.measure.trace import TraceWriter, read_trace
from servekit.nvml import Nvml
from tests.fake_nvml import GPU, FakeNvml
from tests.harness.endpoint import clean_environment
from tests.measure.site import LOAD, PROMPT, TOKENS, Site, running_site

GPU_PAGE = f'servekit_gpu_memory_total_bytes{{gpu="{GPU}",name="NVIDIA L4"}} 2.4e+10\n'


class L4(FakeNvml):
    """An L4 that draws 70 W."""

    def _nvmlDeviceGetTotalEnergyConsumption(self, _handle: int) -> int:  # noqa: N802
        return int(70_000 * time.monotonic())

    def _nvmlDeviceGetFieldValues(self, _handle: int, _fields: list[int]) -> list[Any]:  # noqa: N802
        (answer,) = super()._nvmlDeviceGetFieldValues(_handle, _fields)
        answer.value.uiVal = 70_000
        return [answer]


@pytest.fixture
def site() -> Iterator[Site]:
    """A server that counts."""
    with running_site() as site:
        yield site


def job(folder: Path, site: Site, *load: object, **fields: Any) -> Job:
    """Return a job: so many requests, seconds of waiting, exit code."""
    words = [sys.executable, "-c", LOAD, site.url, *map(str, load)]
    given = {"name": "n", "out": folder / "n.json", "command": words, "idle_s": 0.5, "url": site.url, "quiet": True}
    return Job(**{**given, **fields})


def test_a_measured_command(tmp_path: Path, site: Site) -> None:
    """The record has the command's work to the request and the token, the GPU's energy, and follows from its trace."""
    site.extra += GPU_PAGE
    record, code = measure(job(tmp_path, site, 20, 2, 0, facts={"image": "sha256:12"}), nvml=Nvml(L4()))
    assert code == 0
    assert record is not None
    assert record.run.work is not None
    assert record.run.work.model_dump() == {"output_tokens": 20 * TOKENS, "prompt_tokens": 20 * PROMPT, "requests": 20}
    assert record.run.energy.mean_power_w == pytest.approx(70, rel=0.1)
    assert record.run.energy.gpus[0].source == "counter"
    assert record.run.energy.gpus[0].trace_j == pytest.approx(70 * record.run.duration_s, rel=0.01)
    assert record.idle is not None
    identity = record.identity
    assert (identity.servekit, identity.vllm, identity.contract.met) == ("0.1.0", "0.20.2", True)
    (gpu,) = identity.gpus
    assert (gpu.driver, gpu.cuda, gpu.power_limit_w, gpu.sm_clock_mhz) == ("580.95.05", "13.0", 72.0, 1_350)
    assert identity.facts == {"image": "sha256:12"}
    run = load_run(tmp_path / "n.json")
    assert run.record == record
    count, wrong = verify_run(run)
    assert count > 100
    assert wrong == []


def test_the_temperature_settles_before_the_run(tmp_path: Path, site: Site) -> None:
    """The warm-up is repeated until the temperature changes by less than a degree from one time to the next."""
    site.extra += GPU_PAGE

    class Warming(L4):
        def _nvmlDeviceGetTemperature(self, _handle: int, _sensor: int) -> int:  # noqa: N802
            return min(60, 40 + 5 * site.requests)

    warm_up = (sys.executable, "-c", LOAD, site.url, "2", "0.3", "0")
    record, code = measure(job(tmp_path, site, 3, 0.5, 0, warm_up=warm_up), nvml=Nvml(Warming()))
    assert code == 0
    assert record is not None
    assert site.requests == 3 * 2 + 3, "50, 60 and 60 degrees, then the run"
    assert record.run.work is not None
    assert record.run.work.requests == 3
    assert {each.kind for each in record.disturbances} == {"slowdown"}, "the fake GPU's own, no foreign requests"


def test_a_foreign_process_is_noticed(tmp_path: Path, site: Site) -> None:
    """A process that joins those that were on the GPU at first is somebody else's."""
    site.extra += GPU_PAGE
    library = L4()
    late = time.monotonic() + 1

    def processes(_handle: int) -> list[Any]:
        known = type("Process", (), {"pid": 7, "usedGpuMemory": 1 << 30})
        other = type("Process", (), {"pid": 99, "usedGpuMemory": 1 << 20})
        return [known, other] if time.monotonic() > late else [known]

    library.__dict__["nvmlDeviceGetComputeRunningProcesses"] = processes
    record, _ = measure(job(tmp_path, site, 1, 3, 0), nvml=Nvml(library))
    assert record is not None
    (foreign,) = [each for each in record.disturbances if each.kind == "foreign-process"]
    assert foreign.what.startswith(f"process 99 used {GPU}, 1 MiB")


def test_the_commands_exit_code_comes_through(tmp_path: Path, site: Site) -> None:
    """A failing command is measured all the same; its code is the program's, and a signal is 128 and its number."""
    _, code = measure(job(tmp_path, site, 3, 0, 7, idle_s=0), nvml=Nvml(FakeNvml(nvmlInit=9)))
    assert code == 7
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    record, code = measure(job(tmp_path, site, command=killed, idle_s=0, out=tmp_path / "k.json"))
    assert code == 137
    assert record is not None
    assert record.exit_code == 137


def test_scores_of_the_command(tmp_path: Path, site: Site) -> None:
    """A command can leave its own results where a variable tells it to; what is no number is left out."""
    program = "import json, os; json.dump({'MMMU': 35.3, 'what': 'x'}, open(os.environ['MEASURE_SCORES_FILE'], 'w'))"
    record, code = measure(job(tmp_path, site, command=[sys.executable, "-c", program], idle_s=0))
    assert code == 0
    assert record is not None
    assert record.scores == {"MMMU": 35.3}


def test_all_that_prevents_a_measurement(tmp_path: Path, site: Site) -> None:
    """Every mistake is reported together, before anything starts."""
    (tmp_path / "n.json").touch()
    site.status |= {"ready": False, "state": "starting"}
    with pytest.raises(ConfigurationError) as caught:
        measure(job(tmp_path, site, command=["no-such-program"]))
    text = str(caught.value)
    assert "n.json: error: exists already; choose another --out" in text
    assert "no such command (got no-such-program)" in text
    assert "the endpoint is not ready: starting" in text
    assert not (tmp_path / "n.trace.jsonl.gz").exists()
    with pytest.raises(ConfigurationError, match="no answer of servekit; start the endpoint first"):
        measure(job(tmp_path, site, 1, 0, 0, out=tmp_path / "o.json", url="http://127.0.0.1:9"))


def test_an_engine_without_servekit(tmp_path: Path, site: Site) -> None:
    """With --endpoint only the metrics page is read: work and energy, without a contract."""
    record, _ = measure(job(tmp_path, site, 4, 0.5, 0, bare=True, idle_s=0), nvml=Nvml(L4()))
    assert record is not None
    assert record.run.work is not None
    assert record.run.work.requests == 4
    assert record.identity.contract.met is None
    assert [gpu.name for gpu in record.identity.gpus] == ["NVIDIA L4"]


def program(folder: Path, site: Site, *load: object, idle_s: float = 0) -> "subprocess.Popen[str]":
    """Start `servekit measure` as a user does."""
    words = ["measure", "--observe", site.url, "--out", str(folder / "n.json"), "--idle-s", str(idle_s), "--"]
    argv = [sys.executable, "-m", "servekit.cli.main", *words, sys.executable, "-c", LOAD, site.url, *map(str, load)]
    return subprocess.Popen(
        argv,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_measurement_is_kept(tmp_path: Path, site: Site, eventually: Callable[..., None]) -> None:
    """SIGINT ends the command; what was measured until then is in the record, which says so."""
    measuring = program(tmp_path, site, 5, 600, 0)
    eventually(lambda: site.requests == 5, within_s=40, what="five requests")
    measuring.send_signal(signal.SIGINT)
    _, errors = measuring.communicate(timeout=250)
    assert measuring.returncode == 130, errors
    record = Record.model_validate_json((tmp_path / "n.json").read_bytes())
    assert record.interrupted
    assert record.run.work is not None
    assert record.run.work.requests == 5
    assert record.run.energy.joules is None
    assert "measure: energy: neither NVML nor servekit reports a GPU" in errors
    assert "measure: interrupted: the measurement was interrupted" in errors
    assert "Traceback" not in errors


def test_interrupted_before_the_command(tmp_path: Path, site: Site, eventually: Callable[..., None]) -> None:
    """While the idle power is read there is nothing to keep: no record, no command, exit code 130."""
    measuring = program(tmp_path, site, 5, 0, 0, idle_s=600)
    eventually((tmp_path / "n.trace.jsonl.gz").exists, within_s=40)
    eventually(
        lambda: b"SigCgt" in Path(f"/proc/{measuring.pid}/status").read_bytes() and caught(measuring.pid), within_s=40
    )
    measuring.send_signal(signal.SIGINT)
    _, errors = measuring.communicate(timeout=250)
    assert measuring.returncode == 130
    assert "interrupted before the command began; nothing is recorded" in errors
    assert list(tmp_path.iterdir()) == []
    assert site.requests == 0


def caught(pid: int) -> bool:
    """Return whether a process has its own handler of SIGTERM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def test_the_progress_line(tmp_path: Path, site: Site) -> None:
    """On a log a line comes every half minute, on a terminal one line stays; unknown figures are left out."""
    writer = TraceWriter(tmp_path / "t.gz")
    scraper, reader = Scraper(f"{site.url}/metrics"), GpuReader([GPU], writer, lambda _: True, Nvml(L4()))
    stream = io.StringIO()
    line = ProgressLine(reader, scraper, stream=stream)
    scraper.scrape()
    reader.read()
    line.begin()
    before_j = reader.energy_j or 0
    site.requests, reader.energy_j = 100, before_j + 700
    scraper.scrape()
    assert line.text(10) == "10 s  70.0 W  70 tokens/s  3,600 tokens/Wh  0 running, 0 waiting"
    reader.energy_j = None
    assert line.text(10) == "10 s  70 tokens/s  0 running, 0 waiting"
    for _ in range(5):
        line.run()
    assert stream.getvalue().count("measure: ") == 1
    writer.close()


def test_a_ticker_keeps_its_moments(eventually: Callable[..., None]) -> None:
    """A call that takes longer than the interval is not made up for: the next one comes at a fixed moment."""
    moments: list[float] = []

    def tick() -> None:
        moments.append(time.monotonic())
        if len(moments) == 1:
            while time.monotonic() < moments[0] + 0.12:
                pass

    with Ticker("t", 0.05, tick):
        eventually(lambda: len(moments) >= 4)
    assert moments[1] - moments[0] >= 0.14
    assert all(later > earlier for earlier, later in itertools.pairwise(moments))


def test_a_lost_gpu_is_an_empty_reading(tmp_path: Path) -> None:
    """Readings go on without a GPU that is lost, and have its time alone."""
    library = L4()
    writer = TraceWriter(tmp_path / "t.gz")
    writer.write("begin", format=1)
    reader = GpuReader([GPU], writer, lambda _: True, Nvml(library))
    reader.read()
    library.lost = {0}
    reader.read()
    writer.close()
    first, second = read_trace(tmp_path / "t.gz").all("gpu")
    assert first["power_instant_w"] == 70.0
    assert set(second) == {"kind", "t", "gpu"}
    assert reader.energy_j is None


def test_the_programs_record_is_json(tmp_path: Path, site: Site) -> None:
    """`servekit schema --record` prints the schema that a record of the program follows."""
    jsonschema = pytest.importorskip("jsonschema")
    measuring = program(tmp_path, site, 2, 0, 0)
    _, errors = measuring.communicate(timeout=250)
    assert measuring.returncode == 0, errors
    schema = subprocess.run(
        [sys.executable, "-m", "servekit.cli.main", "schema", "--record"],
        env=dict(os.environ),
        capture_output=True,
        check=True,
    )
    jsonschema.validate(json.loads((tmp_path / "n.json").read_text()), json.loads(schema.stdout))
