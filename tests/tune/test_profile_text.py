"""The profile file of a candidate: the operator's comments stay, and the reason stands above what was changed."""

from pathlib import Path

from servekit.profile import Value, load_profile
from servekit.tune.profile_text import write_candidate

BRACES = """{quantization: compressed-tensors, kv-cache-dtype: fp8_e4m3, max-num-seqs: 1024,
 limit-mm-per-prompt: {image: 3, audio: 0, video: 0}, max-num-batched-tokens: 4096}
"""


def test_comments_stay(root: Path, tmp_path: Path) -> None:
    """One line changes, a new key comes last, each with the reason above it; every other line stays as it is."""
    base = load_profile(root / "vllm_config.yaml")
    changes: dict[str, Value] = {"max-num-batched-tokens": 8192, "performance-mode": "interactivity"}
    path = tmp_path / "best.yaml"
    write_candidate(path, base, changes, heading=("Found.", ""), why=("Because it is 5 % faster.",))
    before = base.path.read_text().splitlines()
    after = path.read_text().splitlines()
    place = after.index("max-num-batched-tokens: 8192")
    assert after[:2] == ["# Found.", "#"]
    assert after[place - 1] == "# Because it is 5 % faster."
    assert after[-2:] == ["# Because it is 5 % faster.", "performance-mode: interactivity"]
    assert set(before) - set(after) == {"max-num-batched-tokens: 4096"}


def test_other_spellings(tmp_path: Path) -> None:
    """vLLM takes underscores for dashes: the key is replaced, not given twice."""
    path = tmp_path / "base.yaml"
    path.write_text(BRACES.replace("{q", "q", 1).replace("4096}", "4096").replace(", ", "\n", 2).replace(",\n ", "\n"))
    text = (
        path.read_text().replace("4096", "4096  # of old").replace("max-num-batched-tokens", "max_num_batched_tokens")
    )
    path.write_text(text.replace("}, max", "}\nmax"))
    found = write_candidate(tmp_path / "new.yaml", load_profile(path), {"max-num-batched-tokens": 8192})
    assert found.arguments["max-num-batched-tokens"] == 8192
    assert "of old" not in (tmp_path / "new.yaml").read_text()


def test_a_file_of_another_form(tmp_path: Path) -> None:
    """One mapping in braces is written anew, with the reasons at the top."""
    path = tmp_path / "base.yaml"
    path.write_text(BRACES)
    base = load_profile(path)
    found = write_candidate(tmp_path / "new.yaml", base, {"max-num-batched-tokens": 8192}, why=("Why.",))
    assert found.arguments == {**base.arguments, "max-num-batched-tokens": 8192}
    assert (tmp_path / "new.yaml").read_text().startswith("# Why.\n")
