"""`servekit verify` on checkpoints that are right, and on such with one step left out or done wrongly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from servekit.recipe.verdict import Expected, Measured, judge, layer_rows
from servekit.recipe.verify import read_scheme
from tests.recipe.conftest import PYTHON, Reports

NEEDS_ENGINE = [pytest.mark.engine, pytest.mark.timeout(900)]
VERIFY = (sys.executable, "-m", "servekit.cli.main", "verify")
EXPECTED = Expected(sparsity=0.1, first_shared=4)
DIVERGENCE = 0.75
"""Of the KL divergence that rounding gives; 0.59 was measured. In nats it would say how random the weights are."""
WRONG = {
    "pruning": {"pruning": "not pruned"},
    "rounding": {"rounding": "rounded to the nearest", "outputs": "than rounding would give"},
    "sharing": {"outputs": "calibrated on other inputs"},
    "tower": {"coverage": "not in a decoder layer"},
    "garbage": {"outputs": "calibrated on other inputs"},
}


def measured(reports: Reports, name: str) -> Measured:
    """Return what the program has measured of a variant."""
    found = Measured()
    for report in reports[name]:
        found.add(report)
    return found


class TestReference:
    """Variants made by the tests' own GPTQ."""

    pytestmark = NEEDS_ENGINE

    def test_a_right_one_is_as_intended(self, variants: tuple[Path, Reports]) -> None:
        """Nothing is said against a checkpoint with every step done."""
        assert judge(measured(variants[1], "good"), EXPECTED) == ()

    @pytest.mark.parametrize("mistake", WRONG)
    def test_each_mistake_is_noticed(self, variants: tuple[Path, Reports], mistake: str) -> None:
        """No pruning, rounding, sharing lost, a tower quantized, calibration on garbage: five of five."""
        said = {finding.name: finding.message for finding in judge(measured(variants[1], mistake), EXPECTED)}
        for name, words in WRONG[mistake].items():
            assert words in said[name]
        assert not {"untouched", "hashes", "scales"} & said.keys()

    def test_divergence_is_bounded(self, variants: tuple[Path, Reports]) -> None:
        """On held-out texts the KL divergence from the base is bounded; rounding and garbage break the bound."""
        found = json.loads((variants[0] / "divergence.json").read_text())
        above = {name for name, nats in found.items() if nats > DIVERGENCE * found["rounding"]}
        assert above == {"rounding", "garbage"}, found

    def test_exact_sparsity_and_no_zero_lost(self, variants: tuple[Path, Reports]) -> None:
        """The mask has 10.00 % of every MLP matrix, and none of its places got a value."""
        mlp = {name: each for name, each in measured(variants[1], "good").matrices.items() if ".mlp." in name}
        assert len(mlp) == 18
        assert {round(each["pruned"], 4) for each in mlp.values()} == {0.1}
        assert {each["pruned_lost"] for each in mlp.values()} == {0}

    def test_command(self, variants: tuple[Path, Reports], base: Path) -> None:
        """The command prints a table and exits with 0, or as JSON the findings of verification and `check` with 3."""
        folder = variants[0]
        words: list[str | Path] = [*VERIFY, "--base", base, "--python", PYTHON]
        good = subprocess.run([*words, folder / "good"], capture_output=True, text=True, check=False)
        assert good.returncode == 0, good.stdout + good.stderr
        assert "10.00%" in good.stdout
        bad = subprocess.run(
            [*words, folder / "tower", "--format", "json"], capture_output=True, text=True, check=False
        )
        assert bad.returncode == 3, bad.stdout + bad.stderr
        assert {"coverage", "tensor-quantized"} <= {each["name"] for each in json.loads(bad.stdout)["findings"]}


LAYERS = "model.language_model.layers"
MATRIX = f"{LAYERS}.0.self_attn.q_proj"


def figures(**more: object) -> dict[str, object]:
    """Return the figures of one right matrix, with other values where given."""
    right = {"elements": 100, "zeros": 0.1, "bad_scales": 0, "scale_ratio": [0.9, 1, 1.1], "error": 0.01, "moved": 0.2}
    return right | more


def recorded(error: float, of_rounding: float) -> dict[str, object]:
    """Return a record of the matrix's errors on its calibration data."""
    matrices = {"self_attn.q_proj": {"error": error, "error_of_rounding": of_rounding}}
    return {"steps": {"quantize": {"0": {"matrices": matrices}}}}


@pytest.mark.parametrize(
    ("measured", "record", "rule"),
    [
        (Measured({MATRIX: figures(bad_scales=1)}), {}, "scales"),
        (Measured({MATRIX: figures(scale_ratio=[0.9, 1, 3])}), {}, "scales"),
        (Measured({MATRIX: figures(pruned=0.1, pruned_lost=0)}), {}, "pruning"),
        (Measured({MATRIX: figures(pruned=0.0, pruned_lost=2)}), {}, "pruning"),
        (Measured({MATRIX: figures()}, {"changed": ["lm_head.weight"]}), {}, "untouched"),
        (Measured({MATRIX: figures()}, {"added": ["model.extra"]}), {}, "untouched"),
        (Measured({MATRIX: figures()}, {"missing": [f"{LAYERS}.3.self_attn.k_proj.weight"]}), {}, "untouched"),
        (Measured({MATRIX: figures()}, {"plain": [f"{LAYERS}.0.mlp.up_proj.weight"]}), {}, "coverage"),
        (Measured(), {}, "coverage"),
        (Measured({MATRIX: figures()}), recorded(0.02, 0.01), "outputs"),
        (Measured({MATRIX: figures()}, outputs={MATRIX: (0.008, 0.01)}), recorded(0.001, 0.01), "outputs"),
        (Measured({MATRIX: figures()}, sha256={"a": "1"}), {"sha256": {"a": "2"}}, "hashes"),
        (Measured({MATRIX: figures()}, sha256={}), {"sha256": {"a": "2"}}, "hashes"),
    ],
)  # fmt: skip
def test_rules(measured: Measured, record: dict[str, object], rule: str) -> None:
    """Each rule notices what breaks it, and no other rule does."""
    assert [finding.name for finding in judge(measured, Expected(0.1, 4, record))] == [rule]


def test_unused_projections_may_be_missing() -> None:
    """A layer that shares K and V may lack k_proj and v_proj."""
    missing = ["model.language_model.layers.4.self_attn.k_proj.weight"]
    assert judge(Measured({MATRIX: figures()}, {"missing": missing}), Expected(0.1, 4)) == ()


def test_another_scheme_is_named() -> None:
    """A checkpoint with other groups than the recipe's has a finding for it."""
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 64, "actorder": "static"}
    (finding,) = judge(Measured({MATRIX: figures()}), Expected(0.1, 4, scheme=scheme))
    assert (finding.name, finding.message) == ("scheme", "is 64, the recipe has 128")


def test_other_words_for_the_same_scheme(tmp_path: Path) -> None:
    """compressed-tensors' defaults may be left out, and `weight` is its other name for `static`."""
    weights = {"num_bits": 4, "strategy": "group", "group_size": 128, "actorder": "weight"}
    config = {"quantization_config": {"config_groups": {"group_0": {"weights": weights}}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert judge(Measured({MATRIX: figures()}), Expected(0.1, 4, scheme=read_scheme(tmp_path))) == ()


def test_outliers_are_warnings() -> None:
    """A matrix with four times the error of its role is named, and does not fail the checkpoint."""
    names = [f"model.language_model.layers.{n}.self_attn.q_proj" for n in range(5)]
    found = Measured({name: figures(error=0.1 if name == names[2] else 0.01) for name in names})
    (finding,) = judge(found, EXPECTED)
    assert (finding.name, finding.severity, finding.subject) == ("outliers", "warning", names[2])


def test_table_has_a_row_for_each_layer() -> None:
    """The table has a row for each layer, with dashes for what was not measured."""
    assert layer_rows(Measured({MATRIX: figures()})) == [
        ["0", "-", "0", "10.00%", "20.00%", "0.90-1.10", "1.00%", "-", "-"]
    ]


def test_no_environment_is_a_clear_message(tmp_path: Path) -> None:
    """Without the environment, and with folders that are no checkpoints, all is said at once."""
    words: list[str | Path] = [*VERIFY, tmp_path, "--base", tmp_path, "--python", tmp_path / "python"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 3
    assert "scripts/install.sh recipe" in done.stderr


def test_a_base_that_is_no_gemma(tmp_path: Path) -> None:
    """A base without a text_config is the user's mistake, and is found before anything is measured."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True}
    out, base = tmp_path / "out", tmp_path / "base"
    for folder, config in ((out, {"quantization_config": {"config_groups": {"a": {"weights": weights}}}}), (base, {})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    words: list[str | Path] = [*VERIFY, out, "--base", base, "--python", sys.executable]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "is not a Gemma 4's" in done.stderr) == (2, True), done.stderr
