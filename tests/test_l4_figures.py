"""The L4 figures in README.md and in the profiles' comments match `servekit plan --gpu l4`."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.memory.gpu_models import GIB
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))  # the benchmarks are not installed

from benchmarks.preflight import write_sparse_checkpoint

BASELINE = (
    "--config",
    "profiles/fp16-baseline.yaml",
    "--deviate",
    "quantization",
    "--deviate",
    "kv-cache-dtype",
    "--embeddings",
    "gpu",
)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The memory plans of the default profile and of the baseline, for checkpoints with the real shapes."""
    found = {}
    for name, words in (("w4a16", ()), ("bf16", BASELINE)):
        folder = tmp_path_factory.mktemp(name)
        write_sparse_checkpoint(folder, quantized=name == "w4a16")
        program = [sys.executable, "-m", "servekit.cli.main", "plan", "--gpu", "l4", "--format", "json"]
        output = subprocess.check_output([*program, "--model", str(folder), *words], cwd=ROOT)
        found[name] = json.loads(output)["memory"]
    return found


def prose(path: str) -> str:
    """Return a file's text without comment signs and line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"(?m)^# ?", "", (ROOT / Path(path)).read_text(encoding="utf-8")))


def gib(plan: dict[str, Any], *names: str) -> str:
    """Return the sum of some of a plan's sizes in the documents' format."""
    return f"{sum(plan[f'{name}_bytes'] for name in names) / GIB:.2f} GiB"


def test_figures_of_the_profile(plans: dict[str, dict[str, Any]]) -> None:
    """Budget, weights, overheads, cache and requests in vllm_config.yaml match the plan."""
    plan, text = plans["w4a16"], prose("vllm_config.yaml")
    ratio = plan["available_bytes"] / plans["bf16"]["available_bytes"]
    for figure in (
        f"vLLM sees {gib(plan, 'total')} and takes {gib(plan, 'budget')}",
        f"the weights take {gib(plan, 'weights')}",
        f"working memory {gib(plan, 'graphs', 'sampler', 'base')}",
        f"{gib(plan, 'available')} are left",
        f"holds {plan['full_requests']:.0f} requests of this length",
        f"holds {plan['typical_requests']} requests of a thousand tokens",
        f"It costs {gib(plan, 'sampler')}",
        f"without {gib(plan, 'pinned')} of embeddings",
        f"take {gib(plan, 'weights', 'pinned')} with the embeddings, not {gib(plans['bf16'], 'weights')}",
        f"The KV cache has {ratio:.0f} times as much memory",
    ):
        assert figure in text


def test_figures_of_the_baseline(plans: dict[str, dict[str, Any]]) -> None:
    """The figures that the baseline's comments compare match the two plans."""
    plan, optimized, text = plans["bf16"], plans["w4a16"], prose("profiles/fp16-baseline.yaml")
    for figure in (
        f"take {gib(plan, 'weights')} of an L4",
        f"{(plan['weights_bytes'] - optimized['weights_bytes'] - optimized['pinned_bytes']) / GIB:.1f} GiB more",
        f"the optimized profile: {gib(plan, 'budget')}. Only {gib(plan, 'available')}",
        f"holds {plan['typical_requests']} requests of a thousand tokens",
        f"has room for {optimized['typical_requests']}",
        f"holds {plan['full_requests']:.1f} requests of this length",
    ):
        assert figure in text


def test_figures_of_the_readme(plans: dict[str, dict[str, Any]]) -> None:
    """The README's sentence on memory matches the plan."""
    plan = plans["w4a16"]
    assert (
        f"An L4 gives vLLM {gib(plan, 'total')}. The profile uses 0.9 of that, {gib(plan, 'budget')}, which leaves "
        f"{gib(plan, 'available')} for the KV cache: about {plan['pool_tokens'] // 1000},000 tokens, "
        f"or {plan['full_requests']:.0f} requests"
    ) in prose("README.md")
