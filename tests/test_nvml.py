"""A GPU's errors through the seam over NVML: what is reported, and that nothing of NVML's is an error of servekit's."""

import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from servekit.nvml import ErrorCounts, GpuErrors
from servekit.observe.gpu_errors import GpuErrorCollector
from servekit.preflight.host.gpus import GpuFacts

GPU = "GPU-1234"
XID, DOUBLE_BIT, SINGLE_BIT = 8, 2, 1


class Nvml:
    """The calls of nvidia-ml-py that are made, for one L4; those named in `silent` are not supported."""

    class NVMLError(Exception):
        """As pynvml's: `value` is the code."""

        value = 3

    class NVMLError_Timeout(NVMLError):  # noqa: N801, N818 - the library's name
        """No event within the time."""

        value = 10

    class NVMLError_GpuIsLost(NVMLError):  # noqa: N801, N818
        """The GPU has fallen off the bus."""

        value = 15

    def __init__(self, *silent: str) -> None:
        self.silent = silent
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.registered: list[tuple[object, int]] = []
        self.waiting = threading.Event()

    def happen(self, kind: int, data: int = 0) -> None:
        """Let the next wait return an event."""
        self.events.put(SimpleNamespace(device="handle", eventType=kind, eventData=data))

    def nvmlEventSetWait_v2(self, events: object, timeout_ms: int) -> Any:  # noqa: N802
        """Return the next event, or raise what stands in its place."""
        assert (events, timeout_ms) == ("set", 1000)
        self.waiting.set()
        try:
            event = self.events.get(timeout=0.02)
        except queue.Empty:
            raise self.NVMLError_Timeout from None
        if isinstance(event, Exception):
            raise event
        return event

    def nvmlDeviceRegisterEvents(self, handle: object, kinds: int, events: object) -> None:  # noqa: N802
        """Remember what was asked for."""
        assert events == "set"
        self.registered.append((handle, kinds))

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlEventSetCreate": "set",
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetUUID": GPU,
            "nvmlDeviceGetSupportedEventTypes": 0xFF,
            "nvmlDeviceGetTotalEccErrors": 5,
            "nvmlDeviceGetRemappedRows": (1, 2, 1, 0),
        }

        def call(*_: object) -> Any:
            if name in self.silent or name not in answers:
                raise self.NVMLError(name)
            return answers[name]

        return call


@pytest.fixture
def nvml() -> Nvml:
    return Nvml()


@pytest.fixture
def errors(nvml: Nvml) -> Iterator[GpuErrors]:
    """A listener at work, at second 100."""
    made = GpuErrors([GPU], nvml, clock=lambda: 100.0)
    made.start()
    yield made
    made.stop()


def test_an_xid_is_counted_and_named(nvml: Nvml, errors: GpuErrors, eventually: Callable[..., None]) -> None:
    """An Xid comes with its meaning where it is known; the count and the last number are kept."""
    assert nvml.registered == [("handle", XID | DOUBLE_BIT | SINGLE_BIT)]
    assert errors.xids() == {GPU: (0, None)}
    nvml.happen(XID, 31)
    nvml.happen(XID, 79)
    eventually(lambda: errors.xids() == {GPU: (2, 79)}, what="two Xids")
    eventually(lambda: "Xid 79" in errors.describe(), what="the description")
    assert errors.describe() == (
        f"Xid 31 (GPU memory page fault) on {GPU}, 0 s before; Xid 79 (GPU has fallen off the bus) on {GPU}, 0 s before"
    )


def test_ecc_errors(nvml: Nvml, errors: GpuErrors, eventually: Callable[..., None]) -> None:
    """An uncorrectable error belongs to the cause of a death, a corrected one does not; neither is an Xid."""
    nvml.happen(SINGLE_BIT)
    nvml.happen(DOUBLE_BIT)
    eventually(errors.describe, what="the description")
    assert errors.describe() == f"uncorrectable ECC error on {GPU}, 0 s before"
    assert errors.xids() == {GPU: (0, None)}


def test_a_lost_gpu_is_told_once(nvml: Nvml, errors: GpuErrors, eventually: Callable[..., None]) -> None:
    """NVML that says the GPU is lost says so each time; it is one error, and the thread does not spin."""
    for _ in range(3):
        nvml.events.put(nvml.NVMLError_GpuIsLost())
    eventually(errors.describe, what="the description")
    assert errors.describe() == "GPU is lost on one of its cards, 0 s before"
    assert not nvml.events.empty()


@pytest.mark.parametrize(
    "silent", ["nvmlInit", "nvmlEventSetCreate", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetSupportedEventTypes"]
)
def test_without_events_nothing_is_reported(silent: str) -> None:
    """A driver that lacks a call reports no Xid, not even a count of none."""
    nvml = Nvml(silent)
    errors = GpuErrors([GPU], nvml)
    errors.start()
    assert errors.xids() == {}
    assert errors.describe() == ""
    assert not nvml.waiting.is_set()


def test_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """No nvidia-ml-py, no report and no error."""
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    errors = GpuErrors([GPU])
    assert (errors.xids(), errors.describe()) == ({}, "")
    assert errors.counts(GPU) == ErrorCounts((None, None), None)


def page(errors: GpuErrors) -> list[str]:
    """Return the samples Prometheus would read, without their labels' GPU."""
    registry = CollectorRegistry()
    registry.register(GpuErrorCollector([GpuFacts(0, GPU, "NVIDIA L4", 1, 1, (8, 9))], errors))
    lines = generate_latest(registry).decode().splitlines()
    labels = (f'gpu="{GPU}",', 'name="NVIDIA L4"')
    return [line.replace(labels[0], "").replace(labels[1], "") for line in lines if not line.startswith("#")]


def test_metrics(nvml: Nvml, errors: GpuErrors, eventually: Callable[..., None]) -> None:
    """Each count is a family; the last Xid is absent before the first."""
    assert page(errors)[0] == "servekit_gpu_xid_errors_total{} 0.0"
    nvml.happen(XID, 48)
    eventually(lambda: errors.xids() == {GPU: (1, 48)}, what="the Xid")
    assert page(errors) == [
        "servekit_gpu_xid_errors_total{} 1.0",
        "servekit_gpu_last_xid{} 48.0",
        'servekit_gpu_ecc_errors_total{kind="corrected",} 5.0',
        'servekit_gpu_ecc_errors_total{kind="uncorrected",} 5.0',
        'servekit_gpu_remapped_rows{cause="corrected",} 1.0',
        'servekit_gpu_remapped_rows{cause="uncorrected",} 2.0',
        "servekit_gpu_remapping_pending{} 1.0",
        "servekit_gpu_remapping_failed{} 0.0",
    ]


def test_metrics_that_are_not_told_are_absent() -> None:
    """A card without ECC and row remapping, and without events, has no series at all."""
    silent = ("nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetSupportedEventTypes")
    assert page(GpuErrors([GPU], Nvml(*silent))) == []
