"""`servekit check` against the engine's verdict on mutated checkpoints: the record, and three judged anew."""

import math
import random
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed package

from benchmarks.verdicts.__main__ import RECORD, is_wrong, judged, read, replay, told
from benchmarks.verdicts.judges import Bench, Engine, wrong_logits
from benchmarks.verdicts.mutations import MORE, OTHER, SAME, cases, draw, view


def has_zero_points(record: dict[str, Any]) -> bool:
    """Whether the mutation quantizes with zero points."""
    return any(name == "scheme" and arguments[1] for name, *arguments in record["changes"])


RECORDED = read(RECORD)
PIECE = 50
_SEED = RECORDED[-1]["draw"].split()[0]
SEEN = [record for record in RECORDED if record["draw"].split()[0] == _SEED and not has_zero_points(record)]
"""The last run: the judge and `check` were seen to agree on each. Zero points need a CPU with AVX-512."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Both unchanged checkpoints, and room for a mutated one."""
    return Bench(tmp_path_factory.mktemp("verdicts"))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("begin", range(0, len(RECORDED), PIECE))
def test_check_agrees_with_the_recorded_engine(bench: Bench, begin: int) -> None:
    """`check` refuses each recorded mutation that the engine did not serve well, and accepts all others."""
    records = list(replay(bench, RECORDED[begin : begin + PIECE]))
    assert len(records) > 0
    assert [told(record) for record in records if is_wrong(record)] == []


def test_half_of_the_record_is_served() -> None:
    """The record has hundreds of mutations, and neither verdict is rare: agreement on it means something."""
    served = sum(record["engine"] == "served" for record in RECORDED)
    assert len(RECORDED) >= 200
    assert 0.35 < served / len(RECORDED) < 0.75


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_three_of_the_record_judged_anew(bench: Bench) -> None:
    """`check` and the engine still agree on three mutations of the last run of `make verdicts`, chosen at random.

    Mutations that nobody has seen are for `make verdicts`: what it finds is mended there, and fails no build.
    """
    with Engine(bench, bench.folder / "engine.log") as engine:
        records = [judged(bench, engine, record) for record in random.sample(SEEN, 3)]
    assert [told(record) for record in records if is_wrong(record)] == []


@pytest.mark.parametrize("base", ["w4a16", "bf16"])
def test_every_case_can_be_made(bench: Bench, base: str) -> None:
    """Each case of `known.yaml` and many blind changes apply to the checkpoint, and change it."""
    seen = view(bench.folder / base)
    drawn = [*cases(Random(1), seen), *(draw(Random(number), seen) for number in range(40))]
    for _, changes in drawn:
        bench.mutate(base, changes)
        assert contents(bench.patient) != contents(bench.folder / base), changes


def test_a_seed_draws_the_same_again(bench: Bench) -> None:
    """The seed alone decides on the mutations."""
    seen = view(bench.folder / "w4a16")
    first, again = ([draw(random, seen) for _ in range(20)] for random in (Random(7), Random(7)))
    assert first == again


def test_wrong_logits_are_seen() -> None:
    """Logits are wrong if they are no numbers, differ where they must not, or do not where they must."""
    known = [[1.0, 2.0], [3.0, 4.0]]
    near, far = [[1.0, 2.01], [3.0, 4.0]], [[1.0, 2.0], [3.0, 9.0]]
    assert [wrong_logits(near, known, means) for means in (SAME, OTHER)] == ["", ""]
    assert wrong_logits(far, known, OTHER) == wrong_logits(far, known, MORE) == ""
    assert wrong_logits(far, known, SAME) == "logits differ by 5.00"
    assert wrong_logits([[1.0, 2.0, 0.0], [3.0, 4.0]], known, SAME) == "logits differ by inf"
    assert wrong_logits(near, known, MORE) == "what it stores or declares has no effect"
    assert wrong_logits([[1.0, math.nan], [3.0, 4.0]], known, OTHER) == "logits that are no numbers"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
