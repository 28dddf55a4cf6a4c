"""The errors that a GPU reports: which are counted, how they are described, and that a lost GPU breaks nothing."""

from collections.abc import Callable

import pytest

from servekit.nvml import Nvml
from servekit.observe.gpu_errors import GpuErrors
from tests.fake_nvml import DOUBLE_BIT, GPU, XID, FakeNvml, pynvml

SINGLE_BIT = pynvml.nvmlEventTypeSingleBitEccError


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


@pytest.fixture
def errors(nvml: FakeNvml) -> GpuErrors:
    """Return a running listener at second 100."""
    made = GpuErrors([GPU], Nvml(nvml), clock=lambda: 100.0)
    made.start()
    return made


def test_an_xid_is_counted_and_named(nvml: FakeNvml, errors: GpuErrors, eventually: Callable[..., None]) -> None:
    """A known Xid is reported with its meaning, and the count and the last number are kept."""
    assert errors.xids() == {GPU: (0, None)}
    nvml.happen(XID, 31)
    nvml.happen(XID, 79)
    eventually(lambda: errors.xids() == {GPU: (2, 79)}, what="two Xids")
    eventually(lambda: "Xid 79" in errors.describe(), what="the description")
    assert errors.describe() == (
        f"Xid 31 (GPU memory page fault) on {GPU}, 0 s before; Xid 79 (GPU has fallen off the bus) on {GPU}, 0 s before"
    )


def test_an_xid_of_a_gpu_that_no_longer_answers(
    nvml: FakeNvml, errors: GpuErrors, eventually: Callable[..., None]
) -> None:
    """A GPU that has fallen off the bus returns no UUID, but its Xid is still counted."""
    nvml.failures["nvmlDeviceGetUUID"] = pynvml.NVML_ERROR_GPU_IS_LOST
    nvml.happen(XID, 79)
    eventually(lambda: errors.xids() == {GPU: (1, 79)}, what="the Xid")
    assert errors.describe() == f"Xid 79 (GPU has fallen off the bus) on {GPU}, 0 s before"


def test_ecc_errors(nvml: FakeNvml, errors: GpuErrors, eventually: Callable[..., None]) -> None:
    """An uncorrectable error is part of the cause of a death but not an Xid; corrected errors are not subscribed to."""
    nvml.happen(DOUBLE_BIT)
    eventually(errors.describe, what="the description")
    assert errors.describe() == f"uncorrectable ECC error on {GPU}, 0 s before"
    assert errors.xids() == {GPU: (0, None)}
    ((handle, kinds),) = nvml.registered
    assert (handle, kinds) == (0, XID | DOUBLE_BIT)
    assert not kinds & SINGLE_BIT


def test_a_lost_gpu_is_recorded_once(nvml: FakeNvml, errors: GpuErrors, eventually: Callable[..., None]) -> None:
    """NVML reports a lost GPU at each wait, but servekit counts one error and its thread does not spin."""
    for _ in range(3):
        nvml.events.put(pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST))
    eventually(errors.describe, what="the description")
    assert errors.describe() == f"GPU is lost on {GPU}, 0 s before"
    assert not nvml.events.empty()


@pytest.mark.parametrize(
    "silent", ["nvmlInit", "nvmlEventSetCreate", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetSupportedEventTypes"]
)
def test_without_events_nothing_is_reported(silent: str) -> None:
    """With a driver that lacks a call, no Xid is reported, not even a count of 0."""
    nvml = FakeNvml(silent)
    errors = GpuErrors([GPU], Nvml(nvml))
    errors.start()
    assert errors.xids() == {}
    assert errors.describe() == ""
    assert not nvml.waiting.is_set()


def test_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nvidia-ml-py there is no report and no error."""
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    errors = GpuErrors([GPU], Nvml())
    assert (errors.xids(), errors.describe()) == ({}, "")
