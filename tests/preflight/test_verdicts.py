"""`servekit check` against the engine's verdict on mutated checkpoints: the record, and three fresh mutations."""

import math
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed package

from benchmarks.verdicts.__main__ import RECORD, fresh, is_wrong, read, replay, told
from benchmarks.verdicts.judges import Bench, Engine, wrong_logits
from benchmarks.verdicts.mutations import MORE, OTHER, SAME, cases, draw, view

RECORDED = read(RECORD)
PIECE = 50


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Both unchanged checkpoints, and room for a mutated one."""
    return Bench(tmp_path_factory.mktemp("verdicts"))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("begin", range(0, len(RECORDED), PIECE))
def test_check_agrees_with_the_recorded_engine(bench: Bench, begin: int) -> None:
    """`check` refuses each recorded mutation that the engine did not serve well, and accepts all others.

    The few lines with `known` say why the two differ.
    """
    judged = list(replay(bench, RECORDED[begin : begin + PIECE]))
    assert len(judged) > 0
    assert [told(record) for record in judged if is_wrong(record) is not ("known" in record)] == []


def test_half_of_the_record_is_served() -> None:
    """The record has hundreds of mutations, and neither verdict is rare: agreement on it means something."""
    served = sum(record["engine"] == "served" for record in RECORDED)
    assert len(RECORDED) >= 200
    assert 0.35 < served / len(RECORDED) < 0.75


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_three_fresh_mutations(bench: Bench) -> None:
    """`check` and the engine agree on three mutations that nobody has seen before.

    Except on what `check` refuses for a reason that the record marks as `known`.
    """
    known = [record["check"] for record in replay(bench, [line for line in RECORDED if "known" in line])]
    with Engine(bench, bench.folder / "engine.log") as engine:
        judged = list(fresh(bench, engine, int(time.time()), 3))
    assert [told(record) for record in judged if is_wrong(record) and record["check"] not in known] == []


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
    assert wrong_logits(near, known, MORE) == "a stored tensor has no effect"
    assert wrong_logits([[1.0, math.nan], [3.0, 4.0]], known, OTHER) == "logits that are no numbers"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
