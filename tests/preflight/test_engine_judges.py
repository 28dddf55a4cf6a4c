"""vLLM's own verdict on each unusual checkpoint, from its start to the first answers, compared with preflight's."""

import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.preflight.conftest import Patient
from tests.preflight.unusual import BY_TARGET, UNUSUAL

sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed package

from benchmarks.verdicts.judges import REFUSED, Bench, Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SERVED_ALL_THE_SAME = {
    # Wrongly, without a word
    "a tied head quantized",
    "an untied head that is not stored",
    "a bias",
    "a bias of the tied head",
    "a clipped tower without bounds",
    "another id for the begin of an image",
    # Well, though the file contradicts itself or declares what this endpoint does not serve
    "2:4 sparse for Marlin",
}
"""What preflight refuses and vLLM serves."""
CASES = {name: (make, findings) for name, (make, findings, _) in UNUSUAL.items()}
CASES |= {name: (make, on_cpu) for name, (make, _, on_cpu) in BY_TARGET.items()}
del CASES["another model in W4A16"]  # preflight does not judge it


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, Engine]]:
    """vLLM in one process, and the folder of the checkpoint that it judges."""
    bench = Bench(tmp_path_factory.mktemp("judges"))
    with Engine(bench, bench.folder / "engine.log") as engine:
        yield bench, engine


@pytest.mark.parametrize("name", CASES)
def test_preflight_refuses_what_vllm_refuses(name: str, engine: tuple[Bench, Engine]) -> None:
    """An error of preflight ends vLLM's start or its first answers, and nothing else does, with named exceptions."""
    bench, judge = engine
    make, findings = CASES[name]
    shutil.rmtree(bench.patient, ignore_errors=True)
    shutil.copytree(bench.folder / "w4a16", bench.patient)
    make(Patient(bench.patient))
    verdict = judge.verdict("w4a16", "other")
    expected = "error" in findings.values() and name not in SERVED_ALL_THE_SAME
    assert (verdict["engine"] == REFUSED) == expected, verdict
