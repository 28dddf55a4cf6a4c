"""The wrapper around NVML: plain values, None for a missing one, and no NVML error reaches the caller."""

import ast
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servekit.nvml import CONSTANTS, GpuEvent, GpuFacts, GpuReadings, GpuSurvey, Nvml
from servekit.preflight.host.gpus import check_readable
from tests.fake_nvml import GPU, MIB, FakeNvml, pynvml

L4 = GpuFacts(
    index=0,
    uuid=GPU,
    name="NVIDIA L4",
    memory_bytes=23_034 * MIB,
    free_bytes=22_500 * MIB,
    capability=(8, 9),
    reserved_bytes=470 * MIB,
    processes={7: 4096},
    uncorrected_errors=5,
    slowdowns=("hardware thermal slowdown",),
)
READINGS = GpuReadings(
    energy_j=81_234.567,
    power_w=71.5,
    power_instant_w=70.9,
    power_limit_w=72.0,
    temperature_c=64,
    sm_clock_mhz=1_350,
    memory_clock_mhz=6_251,
    memory_used_bytes=534 * MIB,
    memory_total_bytes=23_034 * MIB,
    slowdowns=("hardware thermal slowdown",),
    corrected_errors=5,
    uncorrected_errors=5,
    remapped_rows=(1, 2, True, False),
)
NO_FUNCTION = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
LOST = pynvml.NVML_ERROR_GPU_IS_LOST


def test_survey_and_readings_of_an_l4() -> None:
    """NVML's answers become plain values in base units, and NVML is initialised once for all of them."""
    library = FakeNvml()
    nvml = Nvml(library)
    assert nvml.survey() == GpuSurvey("580.95.05", (13, 0), (L4,))
    assert nvml.read(GPU) == READINGS
    assert nvml.listen([GPU]) == (GPU,)
    assert library.calls.count("nvmlInit") == 1


@pytest.mark.parametrize("code", ["NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_DRIVER_NOT_LOADED"])
def test_no_driver_is_no_survey(code: str) -> None:
    """Without NVML's library, and without a driver, there are no GPUs, no values and no events."""
    nvml = Nvml(FakeNvml(nvmlInit=getattr(pynvml, code)))
    assert nvml.survey() is None
    assert nvml.read(GPU) == GpuReadings()
    assert nvml.listen([GPU]) == ()
    assert nvml.next_event() == GpuEvent("failed")


def test_no_pynvml_is_no_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pynvml there are no GPUs either."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Nvml().survey() is None


def test_the_real_library_of_this_machine() -> None:
    """The installed pynvml returns a survey, or None if there is no driver."""
    assert isinstance(Nvml().survey(), GpuSurvey | None)


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        ("nvmlDeviceGetTotalEnergyConsumption", {"energy_j": None}),
        ("nvmlDeviceGetPowerUsage", {"power_w": None}),
        ("nvmlDeviceGetFieldValues", {"power_instant_w": None}),
        ("nvmlDeviceGetClockInfo", {"sm_clock_mhz": None, "memory_clock_mhz": None}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_w": None}),
        ("nvmlDeviceGetMemoryInfo", {"memory_used_bytes": None, "memory_total_bytes": None}),
        ("nvmlDeviceGetCurrentClocksEventReasons", {"slowdowns": None}),
        ("nvmlDeviceGetTotalEccErrors", {"corrected_errors": None, "uncorrected_errors": None}),
        ("nvmlDeviceGetRemappedRows", {"remapped_rows": None}),
        ("nvmlDeviceGetTemperature", {"temperature_c": None}),
    ],
)
def test_a_function_that_an_older_driver_lacks(function: str, missing: dict[str, None]) -> None:
    """If the driver's library lacks a symbol, only that value is missing."""
    readings = Nvml(FakeNvml(**{function: NO_FUNCTION})).read(GPU)
    assert readings == dataclasses.replace(READINGS, **missing)


def test_some_fields_and_the_processes_alone() -> None:
    """A reading of some fields calls only their functions; the processes of a GPU can be read without a survey."""
    library = FakeNvml()
    nvml = Nvml(library)
    assert nvml.read(GPU, ("power_w", "energy_j")) == GpuReadings(energy_j=81_234.567, power_w=71.5)
    wanted = {"nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"}
    assert set(library.calls) == wanted
    assert nvml.processes(GPU) == {7: 4096}
    library.lost = {0}
    assert nvml.processes(GPU) is None


def test_a_field_that_the_driver_does_not_report() -> None:
    """NVML can answer the query and fail the single field: then the instant power is unknown."""

    class Older(FakeNvml):
        def _nvmlDeviceGetFieldValues(self, _handle: int, _fields: list[int]) -> list[Any]:  # noqa: N802
            return [SimpleNamespace(nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED, value=None)]

    assert Nvml(Older()).read(GPU).power_instant_w is None


def test_a_function_that_an_older_pynvml_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """If pynvml itself lacks a function, only that value is missing."""
    monkeypatch.delattr(pynvml, "nvmlDeviceGetRemappedRows")
    assert Nvml(FakeNvml()).read(GPU) == dataclasses.replace(READINGS, remapped_rows=None)


def test_survey_of_an_l4_that_reports_less() -> None:
    """Values that not every GPU has may be missing; the rest of the survey is complete."""
    optional = ("nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetMigMode", "nvmlDeviceGetComputeRunningProcesses")
    survey = Nvml(FakeNvml(*optional, "nvmlSystemGetDriverVersion")).survey()
    bare = dataclasses.replace(L4, uncorrected_errors=None, processes={})
    assert survey == GpuSurvey("unknown", (13, 0), (bare,))


def test_a_lost_gpu_does_not_hide_the_healthy_ones() -> None:
    """The survey lists an unreadable GPU with NVML's reason, and preflight warns about it by name."""
    library = FakeNvml(count=3)
    library.lost = {1}
    survey = Nvml(library).survey()
    assert survey is not None
    assert [gpu.index for gpu in survey.gpus] == [0, 2]
    assert survey.unreadable == ((1, "GPU is lost"),)
    (finding,) = check_readable(survey)
    assert str(finding).startswith("warning: GPU 1: NVML cannot read this GPU: GPU is lost; look for")
    assert finding.name == "gpu-unreadable"
    library.lost = {0, 1, 2}
    lost = Nvml(library).survey()
    assert [str(finding.severity) for finding in check_readable(lost)] == ["error"] * 3


def functions_called() -> list[str]:
    """Return the NVML functions that servekit calls for a survey, a reading and a GPU's events."""
    library = FakeNvml()
    nvml = Nvml(library)
    nvml.survey()
    nvml.read(GPU)
    nvml.listen([GPU])
    return sorted({*library.calls} - {"nvmlInit"})


@pytest.mark.parametrize("function", functions_called())
def test_no_failure_of_a_function_leaves_the_seam(function: str) -> None:
    """Whichever function fails, the survey, the readings and the registration for events return normally."""
    nvml = Nvml(FakeNvml(**{function: pynvml.NVML_ERROR_UNKNOWN}))
    survey = nvml.survey()
    assert survey is not None
    assert len(survey.gpus) + len(survey.unreadable) == (function != "nvmlDeviceGetCount")
    nvml.read(GPU)
    nvml.listen([GPU])


def test_a_gpu_that_is_lost_while_it_is_read() -> None:
    """If a GPU fails between two calls of a reading, it has the values read before, and None for the others."""

    class Failing(FakeNvml):
        def _nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> Any:  # noqa: N802
            self.lost.add(0)
            return super()._nvmlDeviceGetMemoryInfo(handle, version)

    library = Failing()
    readings = Nvml(library).read(GPU)
    assert (readings.power_w, readings.power_limit_w, readings.memory_used_bytes) == (71.5, 72.0, 534 * MIB)
    assert (readings.memory_total_bytes, readings.slowdowns, readings.uncorrected_errors) == (None, None, None)
    assert Nvml(library).read(GPU).energy_j is None


def test_constants_are_those_of_pynvml() -> None:
    """The numbers in servekit's table are those of the installed pynvml."""
    assert {name: getattr(pynvml, name) for name in CONSTANTS} == CONSTANTS


def test_nothing_else_touches_pynvml(root: Path) -> None:
    """No other file of servekit imports pynvml, mentions it, or calls one of its functions."""
    package = root / "src/servekit"
    others = [file for file in package.rglob("*.py") if file != package / "nvml.py"]
    assert len(others) > 100
    assert [file for file in others if any(map(_names_pynvml, ast.walk(ast.parse(file.read_text()))))] == []
    assert any(map(_names_pynvml, ast.walk(ast.parse((package / "nvml.py").read_text()))))


def _names_pynvml(node: ast.AST) -> bool:
    match node:
        case ast.Import(names) | ast.ImportFrom(names=names):
            words = [alias.name for alias in names] + [getattr(node, "module", None)]
        case ast.Name(id=word) | ast.Attribute(attr=word) | ast.Constant(value=str(word)):
            words = [word]
        case _:
            return False
    return any(word and (word == "pynvml" or (word.startswith("nvml") and word[4:5].isupper())) for word in words)
